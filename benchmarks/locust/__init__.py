"""A load test by Locust: users who call the churn model of their state, on two sizings side by side."""
