"""What a person sees of a run: a live panel, plain lines, tables, or JSON."""
