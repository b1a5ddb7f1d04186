"""The names of resources: their form is AWS's, see "Amazon Resource Names (ARNs)" in AWS's General Reference."""

import pytest
from polyhost.endpoint.arns import ENDPOINT, Arns, partition_of

ACCOUNT = "123456789012"


@pytest.mark.parametrize(
    ("region", "partition"),
    [
        ("us-east-1", "aws"),
        ("eu-central-2", "aws"),
        ("ap-southeast-4", "aws"),
        ("cn-north-1", "aws-cn"),
        ("cn-northwest-1", "aws-cn"),
        ("us-gov-east-1", "aws-us-gov"),
        ("us-gov-west-1", "aws-us-gov"),
        ("local", "aws"),
    ],
)
def test_partition_follows_from_the_region(region: str, partition: str) -> None:
    assert partition_of(region) == partition


def test_every_resource_is_of_the_regions_partition() -> None:
    arns = Arns(ACCOUNT, "cn-north-1")
    assert arns.of(ENDPOINT, "Mine") == "arn:aws-cn:sagemaker:cn-north-1:123456789012:endpoint/mine"
    assert arns.log_group("Mine") == "arn:aws-cn:logs:cn-north-1:123456789012:log-group:/aws/sagemaker/Endpoints/Mine"
    assert arns.loaded_model("M") == "arn:aws-cn:polyhost:cn-north-1:123456789012:loaded-model/M"


def test_only_resources_of_this_account_and_region_are_read() -> None:
    arns = Arns(ACCOUNT, "us-east-1")
    assert arns.read(arns.of(ENDPOINT, "mine")) == (ENDPOINT, "mine")
    assert arns.read("arn:aws:sagemaker:us-east-2:123456789012:endpoint/mine") is None
    assert arns.read("arn:aws-cn:sagemaker:us-east-1:123456789012:endpoint/mine") is None
    assert arns.read("arn:aws:sagemaker:us-east-1:123456789012:training-job/mine") is None


def test_transform_jobs_have_arns_of_their_own() -> None:
    """As the service authorization reference of SageMaker has them: `transform-job`, and no resource of a list."""
    arns = Arns(ACCOUNT, "us-east-1")
    job = "arn:aws:sagemaker:us-east-1:123456789012:transform-job/may"

    for operation in ("CreateTransformJob", "DescribeTransformJob", "StopTransformJob"):
        assert arns.touched_by(operation, {"TransformJobName": "May", "ModelName": "m"}) == [job]
    assert arns.touched_by("ListTransformJobs", {}) == ["*"]
    assert arns.touched_by("AddTags", {"ResourceArn": job}) == [job]
