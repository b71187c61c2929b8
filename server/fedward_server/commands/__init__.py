"""One module for each family of commands: each returns a Report; none reads an argument or writes to a terminal."""
