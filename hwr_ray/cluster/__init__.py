"""Connection to Ray, cluster resources and monitoring of jobs."""
