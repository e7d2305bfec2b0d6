"""A model made sparse, trained that way, and made dense again."""
