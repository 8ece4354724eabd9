"""Label files and images to a prepared data set."""
