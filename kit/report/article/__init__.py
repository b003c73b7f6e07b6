"""The article's own parts: its figures, its published files, its notebooks' sizes."""
