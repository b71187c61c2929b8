"""What a person sees while a run goes on: a live panel, plain lines, or JSON."""
