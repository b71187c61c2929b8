"""Result folders: laid out, loaded back, drawn."""
