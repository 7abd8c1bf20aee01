"""The recipe: fields, resolving, the shipped ones."""
