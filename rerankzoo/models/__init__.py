"""Model families: a config and modelling file each. Families never import one another."""
