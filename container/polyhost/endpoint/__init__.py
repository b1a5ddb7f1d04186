"""What SageMaker does around a container, done here: endpoints, the model cache, access."""
