"""Repositories, users and rights, through the real client."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from localhub_helpers import ask

from hubprune.localhub import EmbeddedHub

Api = Callable[[str | None], HfApi]


def status_of(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return int(error.value.response.status_code)


def test_whoami(hub: EmbeddedHub, hub_api: Api) -> None:
    me = hub_api("me").whoami()
    assert (me["name"], me["isPro"], [org["name"] for org in me["orgs"]]) == ("me", True, ["acme"])
    assert hub_api("guest").get_user_overview("guest").is_pro is False
    with pytest.raises(HfHubHTTPError, match="Invalid") as error:
        HfApi(endpoint=hub.url, token="hf_wrong").whoami()
    assert status_of(error) == 401


def test_create_again_is_409_and_exist_ok_returns_the_url(hub: EmbeddedHub, hub_api: Api) -> None:
    api = hub_api("me")
    assert api.create_repo("me/twice").url == f"{hub.url}/me/twice"
    with pytest.raises(HfHubHTTPError) as error:
        api.create_repo("twice")
    assert status_of(error) == 409
    assert api.create_repo("me/twice", exist_ok=True).repo_id == "me/twice"
    assert api.create_repo("me/twice", repo_type="dataset").repo_type == "dataset"


def test_only_own_namespaces_and_organizations_can_be_written(hub_api: Api) -> None:
    hub_api("me").create_repo("acme/shared")
    with pytest.raises(HfHubHTTPError) as error:
        hub_api("guest").create_repo("acme/other")
    assert status_of(error) == 403
    with pytest.raises(HfHubHTTPError) as error:
        hub_api("guest").upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="acme/shared")
    assert status_of(error) == 403
    with pytest.raises(HfHubHTTPError) as error:
        hub_api(None).create_repo("acme/other")
    assert status_of(error) == 401


def test_gradio_space_needs_pro_and_static_does_not(hub_api: Api) -> None:
    guest = hub_api("guest")
    for sdk in ("gradio", "docker"):
        with pytest.raises(HfHubHTTPError) as error:
            guest.create_repo(f"guest/{sdk}", repo_type="space", space_sdk=sdk)
        assert status_of(error) == 402
    guest.create_repo("guest/page", repo_type="space", space_sdk="static")
    assert guest.space_info("guest/page").sdk == "static"


def test_private_repo_does_not_exist_for_others(hub: EmbeddedHub, hub_api: Api) -> None:
    api = hub_api("me")
    api.create_repo("me/concealed", private=True)
    api.upload_file(path_or_fileobj=b"secret", path_in_repo="a.txt", repo_id="me/concealed")
    assert api.model_info("me/concealed").private
    for user in ("guest", None):
        other = hub_api(user)
        with pytest.raises(RepositoryNotFoundError) as error:
            other.model_info("me/concealed")
        assert not isinstance(error.value, GatedRepoError)
        with pytest.raises(RepositoryNotFoundError):
            other.hf_hub_download("me/concealed", "a.txt")
        assert "me/concealed" not in [model.id for model in other.list_models(author="me")]
        assert b"concealed" not in ask(hub, "/", user=user).body
    assert ask(hub, "/me/concealed").status == 404
    assert "me/concealed" in [model.id for model in api.list_models(author="me")]
    api.update_repo_settings("me/concealed", visibility="public")
    assert hub_api(None).model_info("me/concealed").private is False


def test_gated_repo_asks_and_accepts(hub: EmbeddedHub, hub_api: Api) -> None:
    api, guest = hub_api("me"), hub_api("guest")
    api.create_repo("me/gated")
    api.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id="me/gated")
    api.update_repo_settings("me/gated", gated="auto")
    assert guest.model_info("me/gated").gated == "auto"
    with pytest.raises(GatedRepoError, match="ask for access"):
        guest.hf_hub_download("me/gated", "a.txt")
    with pytest.raises(GatedRepoError) as error:
        guest.auth_check("me/gated")
    assert status_of(error) == 403
    assert "ask for access" in ask(hub, "/me/gated").text
    assert ask(hub, "/me/gated/ask-access", method="POST", user="guest").json == {"status": "accepted"}
    guest.auth_check("me/gated")
    guest.hf_hub_download("me/gated", "a.txt")
    api.auth_check("me/gated", write=True)


def test_manual_gating_waits_for_the_owner(hub: EmbeddedHub, hub_api: Api) -> None:
    api, guest = hub_api("me"), hub_api("guest")
    api.create_repo("me/manual", repo_type="dataset")
    api.update_repo_settings("me/manual", repo_type="dataset", gated="manual")
    ask(hub, "/datasets/me/manual/ask-access", method="POST", user="guest")
    with pytest.raises(GatedRepoError):
        guest.auth_check("me/manual", repo_type="dataset")
    [request] = api.list_pending_access_requests("me/manual", repo_type="dataset")
    assert request.username == "guest"
    api.accept_access_request("me/manual", "guest", repo_type="dataset")
    guest.auth_check("me/manual", repo_type="dataset")
    api.reject_access_request("me/manual", "guest", repo_type="dataset", rejection_reason=None)
    with pytest.raises(GatedRepoError):
        guest.auth_check("me/manual", repo_type="dataset")
    api.grant_access("me/manual", "guest", repo_type="dataset")
    guest.auth_check("me/manual", repo_type="dataset")


def test_moved_repo_answers_to_its_old_name_until_it_is_taken(hub_api: Api) -> None:
    api = hub_api("me")
    api.create_repo("me/old")
    api.move_repo("me/old", "acme/new")
    assert api.model_info("me/old").id == "acme/new"
    api.create_repo("me/old")
    assert api.model_info("me/old").id == "me/old"
    with pytest.raises(HfHubHTTPError) as error:
        api.move_repo("me/old", "acme/new")
    assert status_of(error) == 409


def test_deleted_repo_is_gone(hub_api: Api) -> None:
    api = hub_api("me")
    api.create_repo("me/gone")
    with pytest.raises(HfHubHTTPError) as error:
        hub_api("guest").delete_repo("me/gone")
    assert status_of(error) == 403
    api.delete_repo("me/gone")
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("me/gone")
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo("me/gone")
    api.delete_repo("me/gone", missing_ok=True)


@pytest.mark.parametrize("repo_id", ["gpt2", "nobody/nothing"])
def test_missing_repo_is_reported_as_missing(hub_api: Api, repo_id: str) -> None:
    for user in ("me", None):
        with pytest.raises(RepositoryNotFoundError):
            hub_api(user).model_info(repo_id)
        with pytest.raises(RepositoryNotFoundError):
            hub_api(user).hf_hub_download(repo_id, "config.json")
        assert not hub_api(user).repo_exists(repo_id)


def test_duplicate_copies_files_but_no_secrets(hub_api: Api) -> None:
    api = hub_api("me")
    api.create_repo("me/source", repo_type="space", space_sdk="gradio")
    api.upload_file(path_or_fileobj=b"print()", path_in_repo="app.py", repo_id="me/source", repo_type="space")
    api.add_space_secret("me/source", "TOKEN", "s3cret")
    api.add_space_variable("me/source", "MODEL", "a/b")
    api.duplicate_repo("me/source", "acme/copy", repo_type="space", space_hardware="cpu-upgrade")
    assert "app.py" in api.list_repo_files("acme/copy", repo_type="space")
    assert api.get_space_secrets("acme/copy") == {}
    assert api.get_space_variables("acme/copy")["MODEL"].value == "a/b"
    assert api.get_space_runtime("acme/copy").requested_hardware == "cpu-upgrade"
    with pytest.raises(HfHubHTTPError) as error:
        hub_api("guest").duplicate_repo("me/source", repo_type="space")
    assert status_of(error) == 402


def test_space_settings_and_secrets_that_stay_secret(hub: EmbeddedHub, hub_api: Api) -> None:
    api = hub_api("me")
    api.create_repo(
        "me/app",
        repo_type="space",
        space_sdk="gradio",
        space_secrets=[{"key": "FIRST", "value": "t0p-secret", "description": "why"}],
        space_variables=[{"key": "A", "value": "1"}],
    )
    api.add_space_secret("me/app", "SECOND", "t0p-secret")
    assert api.add_space_variable("me/app", "B", "2", description="d")["B"].description == "d"
    assert {key: item.value for key, item in api.get_space_variables("me/app").items()} == {"A": "1", "B": "2"}
    assert api.get_space_secrets("me/app")["FIRST"].description == "why"
    with pytest.raises(HfHubHTTPError, match="already one of the secrets"):
        api.add_space_variable("me/app", "FIRST", "3")
    assert list(api.delete_space_variable("me/app", "A")) == ["B"]
    api.delete_space_secret("me/app", "SECOND")
    assert list(api.get_space_secrets("me/app")) == ["FIRST"]
    runtime = api.request_space_hardware("me/app", "t4-small", sleep_time=600)
    assert (runtime.requested_hardware, runtime.sleep_time) == ("t4-small", 600)
    assert api.set_space_sleep_time("me/app", 900).sleep_time == 900
    assert api.pause_space("me/app").stage == "PAUSED"
    assert api.restart_space("me/app").stage == "STOPPED"
    assert "t4-small" in [item.name for item in api.list_spaces_hardware()]
    with pytest.raises(HfHubHTTPError, match="hardware is one of"):
        api.request_space_hardware("me/app", "abacus")
    with pytest.raises(HfHubHTTPError) as error:
        hub_api("guest").get_space_secrets("me/app")
    assert status_of(error) == 403
    for path in ("/api/spaces/me/app", "/api/spaces/me/app/secrets", "/api/spaces/me/app/variables", "/spaces/me/app"):
        assert b"t0p-secret" not in ask(hub, path, user="me").body


def test_lists_are_searched_filtered_and_paged(hub_api: Api) -> None:
    api = hub_api("me")
    for number in range(3):
        api.create_repo(f"acme/list-{number}", repo_type="dataset")
    card = b"---\nlicense: mit\ntags: [legal]\nlanguage: en\n---\n"
    api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id="acme/list-1", repo_type="dataset")
    assert len(list(api.list_datasets(author="acme", search="list-"))) == 3
    assert len(list(api.list_datasets(author="acme", limit=2))) == 2
    assert [item.id for item in api.list_datasets(filter=["license:mit", "legal"])] == ["acme/list-1"]
    assert [item.id for item in api.list_datasets(author="acme", sort="last_modified")][0] == "acme/list-1"
    [found] = api.list_datasets(search="list-1", full=True)
    assert (found.card_data.license, found.tags[0]) == ("mit", "legal")
    assert list(api.list_models(author="nobody")) == []
    assert list(api.list_spaces(search="no such space")) == []
    assert list(api.list_models(search="twice", expand=["sha", "private"], gated=True)) == []


def test_model_info_knows_card_config_and_parameters(hub_api: Api) -> None:
    import numpy as np
    from safetensors.numpy import save

    api = hub_api("me")
    api.create_repo("me/facts")
    card = b"---\nlicense: mit\nbase_model: a/b\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n# hi"
    files = {
        "README.md": card,
        "config.json": b'{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}',
        "model.safetensors": save({"w": np.zeros((4, 5), np.float32), "b": np.zeros(3, np.float16)}),
    }
    for path, content in files.items():
        api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id="me/facts")
    info = api.model_info("me/facts", files_metadata=True)
    assert info.card_data.license == "mit"
    assert info.config["model_type"] == "llama"
    assert info.safetensors.parameters == {"F32": 20, "F16": 3}
    assert {"transformers", "text-generation", "license:mit", "base_model:finetune:a/b", "safetensors"} <= set(
        info.tags
    )
    sizes = {item.rfilename: item.size for item in info.siblings}
    assert sizes["README.md"] == len(card)
    weights = next(item for item in info.siblings if item.rfilename == "model.safetensors")
    assert weights.lfs.size == len(files["model.safetensors"])
    assert api.model_info("me/facts", expand=["pipeline_tag"]).pipeline_tag == "text-generation"
    metadata = api.get_safetensors_metadata("me/facts")
    assert metadata.files_metadata["model.safetensors"].tensors["w"].shape == [4, 5]


def test_validate_yaml(hub: EmbeddedHub, hub_api: Api) -> None:
    def check(text: str, repo_type: str = "model") -> tuple[int, dict[str, list[dict[str, str]]]]:
        answer = ask(hub, "/api/validate-yaml", method="POST", data={"content": text, "repoType": repo_type})
        return answer.status, answer.json

    assert check("---\nlicense: mit\ntags: [a]\n---\n") == (200, {"errors": [], "warnings": []})
    code, body = check("# no metadata")
    assert code == 200
    assert "empty or missing" in body["warnings"][0]["message"]
    for head, word in [
        ("base_model: a/b\nbase_model_relation: pruned", "base_model_relation"),
        ("license: 3", "license"),
        ("tags: pruned", "tags"),
        ("tags: [no]", "tags"),
        ("a: [", "valid YAML"),
        ("- a", "mapping"),
        ("model-index: 3", "model-index"),
    ]:
        code, body = check(f"---\n{head}\n---\n")
        assert code == 400
        assert word in body["errors"][0]["message"]
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{new}: &{new} [*{old},*{old},*{old},*{old},*{old},*{old},*{old},*{old}]\n"
        for old, new in zip("abcdefg", "bcdefgh", strict=True)
    )
    assert check(f"---\n{bomb}---\n")[0] == 400
    assert check("---\ntitle: x\nsdk: flask\n---\n", "space")[0] == 400
    with pytest.raises(ValueError, match="base_model_relation"):
        hub_api("me").upload_file(
            path_or_fileobj=b"---\nbase_model_relation: pruned\n---\n", path_in_repo="README.md", repo_id="me/twice"
        )
