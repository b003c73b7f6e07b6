"""What belongs to the article alone: its figures, its published files, its notebooks' sizes."""
