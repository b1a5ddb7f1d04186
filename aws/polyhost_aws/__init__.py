"""The way to AWS: an image to ECR, models to S3, a deployment to SageMaker, or to a Polyhost at home."""
