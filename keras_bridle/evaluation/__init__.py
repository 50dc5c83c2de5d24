"""What an encoder has learned, in numbers and pictures."""
