"""Certificates: a run's cost, signed, in a file that others can check. Nothing here reads data or asks a site."""
