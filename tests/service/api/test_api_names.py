import pytest

from service.api import names
from service.core.errors import InvalidArgumentError
from service.core.types import TaskName


def test_a_task_name_is_read_into_its_parts():
    assert names.task_name("tenants/acme/tasks/leaf-rust") == TaskName("acme", "leaf-rust")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "leaf",
        "tasks/leaf",
        "tenants/acme/tasks/",
        "tenants/Acme/tasks/leaf",
        "tenants/acme/tasks/1leaf",
        "tenants/acme/tasks/leaf/x",
        "tenants/acme/tasks/leaf\n",
        "tenants/acme/tasks/" + "a" * 64,
    ],
)
def test_anything_else_is_no_task_name(name):
    with pytest.raises(InvalidArgumentError) as caught:
        names.task_name(name)
    assert (caught.value.reason, caught.value.field) == ("INVALID_NAME", "name")


def test_an_empty_parent_means_the_default_tenant():
    assert names.tenant_of("") == "default"
    assert names.tenant_of("tenants/acme") == "acme"


@pytest.mark.parametrize("parent", ["acme", "tenants/", "tenants/a/b", "tenants/a/tasks/b"])
def test_a_malformed_parent_is_refused(parent):
    with pytest.raises(InvalidArgumentError) as caught:
        names.tenant_of(parent)
    assert caught.value.field == "parent"


def test_ids_may_be_left_to_the_server_where_they_name_something_new():
    assert names.task_id("") == ""
    assert names.support_id("", required=False) == ""
    with pytest.raises(InvalidArgumentError):
        names.support_id("", required=True)


@pytest.mark.parametrize("text", ["a" * 64, "a b", "ä", "a/b", "a\n"])
def test_a_malformed_support_id_is_refused(text):
    with pytest.raises(InvalidArgumentError) as caught:
        names.support_id(text, required=False)
    assert (caught.value.reason, caught.value.field) == ("INVALID_SUPPORT_ID", "support_id")


def test_a_support_id_takes_its_whole_alphabet():
    assert names.support_id("IMG_0001.a-b", required=True) == "IMG_0001.a-b"


@pytest.mark.parametrize("text", ["Leaf", "1leaf", "-leaf", "leaf_rust", "a" * 64])
def test_a_malformed_task_id_is_refused(text):
    with pytest.raises(InvalidArgumentError) as caught:
        names.task_id(text)
    assert caught.value.reason == "INVALID_TASK_ID"


@pytest.mark.parametrize("text", ["", " leaf", "leaf ", "a\tb", "a" * 64, "\x00"])
def test_a_class_name_is_short_printable_and_trimmed(text):
    with pytest.raises(InvalidArgumentError) as caught:
        names.class_name(text, "classes[3]")
    assert (caught.value.reason, caught.value.field) == ("INVALID_CLASS_NAME", "classes[3]")


@pytest.mark.parametrize("hidden", ["\u200b", "\u2028", "\u2029", "\u202e", "\ufeff", "\x85"])
def test_a_class_name_holds_nothing_that_is_not_seen(hidden):
    with pytest.raises(InvalidArgumentError) as caught:
        names.class_name(f"le{hidden}af", "classes[0]")
    assert caught.value.reason == "INVALID_CLASS_NAME"


def test_class_names_that_look_the_same_are_the_same():
    assert names.class_name("cafe\u0301", "classes[0]") == "caf\u00e9"
    assert names.class_name("e\u0301" * 63, "classes[0]") == "\u00e9" * 63


def test_a_class_name_may_be_in_any_script():
    assert names.class_name("葉の錆", "classes[0]") == "葉の錆"


def test_display_names_have_a_bound_and_no_control_characters():
    assert names.display_name("Rust on leaves") == "Rust on leaves"
    for text in ("a" * 201, "line\nbreak"):
        with pytest.raises(InvalidArgumentError) as caught:
            names.display_name(text)
        assert caught.value.field == "display_name"


def test_a_model_is_named_by_its_alias():
    assert names.model_alias("") == ""
    assert names.model_alias("compact") == "compact"
    for text in ("models/compact", "Compact", "a" * 41):
        with pytest.raises(InvalidArgumentError) as caught:
            names.model_alias(text)
        assert caught.value.field == "model"


def test_a_request_id_is_a_uuid_in_any_case():
    text = "123E4567-E89B-42D3-A456-426614174000"
    assert names.request_id(text) == text.lower()
    assert names.request_id("") == ""


@pytest.mark.parametrize(
    "text",
    ["1", "123e4567e89b42d3a456426614174000", "{123e4567-e89b-42d3-a456-426614174000}", "x" * 36],
)
def test_anything_else_is_no_request_id(text):
    with pytest.raises(InvalidArgumentError) as caught:
        names.request_id(text)
    assert caught.value.field == "request_id"


@pytest.mark.parametrize("text", ["é", "a" * 129, "a\r"])
def test_an_etag_that_no_server_made_is_refused(text):
    with pytest.raises(InvalidArgumentError) as caught:
        names.etag(text)
    assert caught.value.field == "etag"


def test_page_sizes_are_filled_in_and_coerced_and_never_negative():
    assert [names.page_size(size) for size in (0, 1, 1000, 1001)] == [50, 1, 1000, 1000]
    with pytest.raises(InvalidArgumentError) as caught:
        names.page_size(-1)
    assert caught.value.field == "page_size"


def test_page_tokens_come_back_as_they_went_and_hide_what_they_hold():
    token = names.write_page_token("leaf-rust")
    assert "leaf" not in token
    assert names.read_page_token(token) == "leaf-rust"
    assert names.read_page_token("") == ""


@pytest.mark.parametrize("token", ["leaf", "!!!", "é", names.write_page_token("Not-An-Id"), "===="])
def test_a_token_that_no_page_gave_is_refused(token):
    with pytest.raises(InvalidArgumentError) as caught:
        names.read_page_token(token)
    assert (caught.value.reason, caught.value.field) == ("INVALID_PAGE_TOKEN", "page_token")
