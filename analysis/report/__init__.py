"""What is drawn, and only where something has changed: `harness figures`, its check and its trace."""
