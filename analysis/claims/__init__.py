"""The claims of the papers as data, and what the records say of each."""
