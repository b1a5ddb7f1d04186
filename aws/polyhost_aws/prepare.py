"""What a deployment needs and does not make: a role, an image, a prefix. Each is looked for before anything is made."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from polyhost.artifacts.stores import split_source
from polyhost.errors import DeployFailed, InvalidSetting
from polyhost.service_errors import ValidationError

from polyhost_aws import manifests
from polyhost_aws.progress import Progress
from polyhost_aws.session import Aws, CallFailed

# A server at home gives its models no role.
_STAND_IN_ROLE = "arn:aws:iam::000000000000:role/polyhost"

_ECR = re.compile(
    r"(?P<host>(?P<account>\d{12})\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.amazonaws\.com(?:\.cn)?)/(?P<rest>.+)"
)
_REPOSITORY = re.compile(r"(?P<repository>[^:@]+)(?::(?P<tag>[^:@]+))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?")


def source(models: str, *, is_own: bool) -> str:
    """Where the models are, with a final slash. Raises InvalidSetting."""
    url = models if models.endswith("/") else f"{models}/"
    if is_own and "://" not in url:
        url = f"{os.path.abspath(url)}/"
    elif not url.startswith("s3://"):
        raise InvalidSetting(
            f"--models {models}: SageMaker reads models from S3, so this must be s3://BUCKET/PREFIX/. "
            "`polyhost models add` brings them there; a server of your own (--endpoint-url) can read a folder, too."
        )
    try:
        split_source(url)
    except ValidationError as error:
        raise InvalidSetting(f"--models: {error}") from error
    return url


def check_source(aws: Aws, url: str, progress: Progress) -> None:
    """One list call: is there such a bucket, and anything in it? Raises DeployFailed."""
    bucket, prefix = split_source(url)
    if not bucket:
        return
    try:
        answer = aws.call("s3", "ListObjectsV2", {"Bucket": bucket, "Prefix": prefix, "MaxKeys": 1})
    except CallFailed as error:
        if aws.is_own:  # its server may reach what we do not
            progress.say(f"{url} could not be looked at from here: {error}")
            return
        if error.code == "NoSuchBucket":
            raise DeployFailed(f"--models {url}: there is no bucket {bucket}: aws s3 mb s3://{bucket}") from error
        raise
    if not answer.get("KeyCount"):
        progress.say(f"{url} is empty yet: polyhost models add --models {url} FOLDER…")


def role_arn(aws: Aws, role: str) -> str:
    """Raises DeployFailed."""
    if role.startswith("arn:"):
        return role
    if aws.is_own:
        return _STAND_IN_ROLE
    try:
        return str(aws.call("iam", "GetRole", {"RoleName": role})["Role"]["Arn"])
    except CallFailed as error:
        if error.is_forbidden:
            raise DeployFailed(f"{error} Or give the role's ARN: --role arn:aws:iam::ACCOUNT:role/{role}.") from error
        if error.code != "NoSuchEntity":
            raise
        raise DeployFailed(
            f"There is no role {role}, by which SageMaker would read the models and the image. Make it (docs/aws.md: "
            "deploy/iam/execution-role.json), or name another with --role."
        ) from error


@dataclass(frozen=True)
class _Image:
    account: str
    region: str
    host: str
    repository: str
    tag: str
    digest: str


def pinned_image(aws: Aws, image: str) -> str:
    """
    The image in ECR by its digest, so that a tag pushed anew is another image. Raises DeployFailed.

    Without a registry's name before it, the image is one in the account's own.
    """
    if aws.is_own:
        return image
    parsed = _parsed(aws, image)
    which = {"imageDigest": parsed.digest} if parsed.digest else {"imageTag": parsed.tag}
    parameters = {"registryId": parsed.account, "repositoryName": parsed.repository, "imageIds": [which]}
    try:
        (detail,) = aws.call("ecr", "DescribeImages", parameters, parsed.region)["imageDetails"]
    except CallFailed as error:
        if error.code in ("RepositoryNotFoundException", "ImageNotFoundException"):
            raise DeployFailed(
                f"--image: there is no {_url(parsed)}: make push brings it there (docs/aws.md)."
            ) from error
        if not error.is_forbidden:
            raise
        return _url(parsed)
    media_type = detail.get("imageManifestMediaType", manifests.DOCKER)
    if media_type != manifests.DOCKER:
        raise DeployFailed(
            f"--image: SageMaker refuses {_url(parsed)}, because its manifest is {media_type}. Push it with "
            "`polyhost push`, which sees to that."
        )
    return f"{parsed.host}/{parsed.repository}@{detail['imageDigest']}"


def _parsed(aws: Aws, image: str) -> _Image:
    in_ecr = _ECR.fullmatch(image)
    rest = in_ecr["rest"] if in_ecr else image
    match = _REPOSITORY.fullmatch(rest)
    if match is None or (in_ecr is None and re.match(r"[^/]*[.:][^/]*/|localhost/", image)):
        raise InvalidSetting(
            f"--image {image}: SageMaker takes images from ECR: REPOSITORY:TAG in the account's own, or "
            "ACCOUNT.dkr.ecr.REGION.amazonaws.com/REPOSITORY:TAG."
        )
    account, region = (in_ecr["account"], in_ecr["region"]) if in_ecr else (aws.account_id, aws.region)
    host = in_ecr["host"] if in_ecr else registry_of(account, region)
    return _Image(account, region, host, match["repository"], match["tag"] or "latest", match["digest"] or "")


def registry_of(account_id: str, region: str) -> str:
    return f"{account_id}.dkr.ecr.{region}.amazonaws.com{'.cn' if region.startswith('cn-') else ''}"


def _url(image: _Image) -> str:
    return f"{image.host}/{image.repository}{f'@{image.digest}' if image.digest else f':{image.tag}'}"
