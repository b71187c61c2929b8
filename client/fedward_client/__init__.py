"""A site of the federation: policy, round, local training, gate. The site, not the server, holds the privacy."""
