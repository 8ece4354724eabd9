"""What jobs need of Ray."""
