"""What runs came to, beside each other, as one page."""
