"""Questions and images: what is asked."""
