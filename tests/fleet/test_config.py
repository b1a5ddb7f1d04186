"""What `polyhost fleet` prints, as text: servers, options that are refused, numbers that follow from others."""

from __future__ import annotations

import pytest
import yaml
from click.testing import CliRunner
from polyhost.cli import cli
from polyhost.config import Config
from polyhost.errors import InvalidSetting, PolyhostError
from polyhost.fleet.haproxy import configuration, everywhere, requests_per_copy
from polyhost.fleet.layout import Fleet, Server, servers_of
from polyhost.fleet.warm import Outcome, outcome_of


def printed(*arguments: str) -> str:
    return CliRunner().invoke(cli, ["fleet", *arguments], catch_exceptions=False).output


@pytest.mark.parametrize(
    ("replicas", "addresses", "servers"),
    [
        (2, ["polyhost-{}:8080"], [Server(0, "polyhost-0", 8080), Server(1, "polyhost-1", 8080)]),
        (2, ["127.0.0.1:808{}"], [Server(0, "127.0.0.1", 8080), Server(1, "127.0.0.1", 8081)]),
        (2, ["b:1", "a:65535"], [Server(0, "b", 1), Server(1, "a", 65535)]),
        (1, ["[fd00::1]:8080"], [Server(0, "[fd00::1]", 8080)]),
        (1, ["a:8080"], [Server(0, "a", 8080)]),
    ],
)
def test_servers_are_numbered_in_the_order_given(replicas: int, addresses: list[str], servers: list[Server]) -> None:
    assert servers_of(replicas, addresses) == servers


@pytest.mark.parametrize(
    ("replicas", "addresses", "words"),
    [
        (2, ["a:8080"], "1 addresses are given for 2 replicas"),
        (1, ["a:1", "b:1"], "2 addresses are given for 1 replicas"),
        (2, ["a:1", "a:1"], "given twice"),
        (1, ["a"], "is not HOST:PORT"),
        (1, ["a:0"], "is not HOST:PORT"),
        (1, ["a:65536"], "is not HOST:PORT"),
        (1, ["http://a:80"], "is not HOST:PORT"),
        (1, ["a:80 check\n  server b"], "is not HOST:PORT"),
        (1, ["a$b:80"], "is not HOST:PORT"),
        (2, ["a{:1", "a}:1"], "is not HOST:PORT"),
    ],
)
def test_addresses_that_are_none_are_refused(replicas: int, addresses: list[str], words: str) -> None:
    with pytest.raises(InvalidSetting, match=words):
        servers_of(replicas, addresses)


@pytest.mark.parametrize("text", ["a b", 'a"', "a\n", "$(a)", "a'b", "{a}", "a#b", "a\\"])
@pytest.mark.parametrize("option", ["--endpoint-name", "--ready-path", "--server-ca"])
def test_nothing_is_printed_that_a_configuration_reads_as_its_own(option: str, text: str) -> None:
    for engine in ("haproxy", "envoy"):
        with pytest.raises(PolyhostError, match="characters"):
            printed(engine, "--replicas=1", option, text)


def test_a_certificate_needs_its_key_at_envoy() -> None:
    with pytest.raises(PolyhostError, match="two files"):
        printed("envoy", "--replicas=1", "--tls-cert=a.pem")


@pytest.mark.parametrize(
    ("copy_at", "routers", "requests"), [(250, 1, 1250), (250, 2, 625), (10, 1, 50), (0.2, 1, 1), (0.2, 50, 1)]
)
def test_a_copy_is_for_what_one_router_sees_of_a_rate(copy_at: float, routers: int, requests: int) -> None:
    assert requests_per_copy(copy_at, routers) == requests


def test_a_server_has_its_number_and_place_in_both_parts() -> None:
    text = configuration(Fleet(servers=servers_of(12, ["h{}:8080"])))

    assert "    server polyhost-11 h11:8080 id 12\n" in text
    assert "    server polyhost-11 h11:8080 id 12 track predictions/polyhost-11\n" in text
    assert "-m int ge 3 }" in text
    assert "$" not in text.replace("predict$", "").replace("$,)", "")  # ends of regular expressions


@pytest.mark.parametrize(("servers", "copies"), [(1, 2), (3, 2), (8, 2), (9, 3), (12, 3), (50, 13)])
def test_a_model_with_many_copies_is_everywhere(servers: int, copies: int) -> None:
    assert everywhere(servers) == copies


def test_envoys_table_has_hundreds_of_places_for_each_server() -> None:
    for replicas in (3, 100, 101, 1000):
        document = yaml.safe_load(printed("envoy", f"--replicas={replicas}"))
        (cluster,) = document["static_resources"]["clusters"]
        (group,) = cluster["load_assignment"]["endpoints"]
        size = cluster["maglev_lb_config"]["table_size"]

        assert len(group["lb_endpoints"]) == replicas
        assert size / replicas > 600
        assert all(size % divisor for divisor in range(2, int(size**0.5) + 1)), "Maglev's tables are primes"


def test_envoy_closes_idle_connections_before_servers_do() -> None:
    (cluster,) = yaml.safe_load(printed("envoy", "--replicas=1"))["static_resources"]["clusters"]
    (options,) = cluster["typed_extension_protocol_options"].values()
    idle_secs = int(options["common_http_protocol_options"]["idle_timeout"].removesuffix("s"))
    assert idle_secs < Config().keep_alive_secs


@pytest.mark.parametrize(
    ("code", "message", "outcome"),
    [
        ("ModelError", "sagemaker:InvokeEndpoint: Received client error (415) from primary", Outcome.LOADED),
        ("ModelError", 'Received server error (500) with message "Unable to load model: no handler"', Outcome.REFUSED),
        ("ModelNotReadyException", "The model is still being loaded", Outcome.AGAIN),
        ("ServiceUnavailable", "The bucket does not answer", Outcome.AGAIN),
        ("ValidationError", "There is no such model", Outcome.REFUSED),
        ("AccessDeniedException", "No policy allows it", Outcome.REFUSED),
        ("", "was not answered", Outcome.REFUSED),
    ],
)
def test_what_an_answer_says_of_a_models_load(code: str, message: str, outcome: Outcome) -> None:
    assert outcome_of(code, message) is outcome


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--models=/srv/models"], "Name a prefix"),
        (["--models=s3://bucket/models"], "Name a prefix"),
        (["--models=s3://b/", "--state=/srv/state"], "kept in a bucket"),
        (["--models=s3://b/", "--image=polyhost"], "has no tag"),
        (["--models=s3://b/", "--image=host:5000/polyhost"], "has no tag"),
    ],
)
def test_values_that_a_chart_could_not_use_are_refused(arguments: list[str], words: str) -> None:
    with pytest.raises(PolyhostError, match=words):
        printed("kubernetes", "--replicas=3", *arguments)


@pytest.mark.parametrize("arguments", [[], ["--models=a", "--targets=b"]])
def test_warming_needs_to_know_which_models(arguments: list[str]) -> None:
    with pytest.raises(PolyhostError, match="give one of them"):
        printed("warm", "http://127.0.0.1:1", *arguments)
