"""What is measured on models and samples. The package loads lazily: importing it imports no torch."""
