"""What is measured on a model and its samples, one question a file; import the file you need."""
