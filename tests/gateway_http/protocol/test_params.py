import pytest

from gateway_http.protocol.params import param_of


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ("model", "model"),
        ("messages", "messages"),
        ("messages[0].role", "messages[0].role"),
        ("messages[1].content[2].image", "messages[1].content[2].image_url"),
        ("messages[1].content[2].audio", "messages[1].content[2].input_audio"),
        (
            "messages[1].tool_calls[0].function.arguments_json",
            "messages[1].tool_calls[0].function.arguments",
        ),
        ("sampling.temperature", "temperature"),
        ("sampling.max_completion_tokens", "max_completion_tokens"),
        ("sampling.stop[0]", "stop[0]"),
        ("prompt.chat_template_kwargs_json", "chat_template_kwargs"),
        ("prompt.truncate_prompt_tokens", "truncate_prompt_tokens"),
        ("tools[0].function.parameters_json_schema", "tools[0].function.parameters"),
        ("tool_choice.function_name", "tool_choice"),
        ("response_format.json_schema.schema_json", "response_format.json_schema.schema"),
        (
            'response_format.json_schema.schema_json.properties["a.b"].schema_json.minimum',
            'response_format.json_schema.schema.properties["a.b"].schema_json.minimum',
        ),
        (
            "tools[3].function.parameters_json_schema.properties.arguments_json.pattern",
            "tools[3].function.parameters.properties.arguments_json.pattern",
        ),
        (
            "conversation.tools[0].function.parameters_json_schema",
            "tools[0].function.parameters",
        ),
        (
            "response_format.grammar.properties.a.type",
            "structured_outputs.grammar.properties.a.type",
        ),
        ("response_format.regex", "structured_outputs.regex"),
        ("response_format.choice.choices", "structured_outputs.choice"),
        ("audio", "audio"),
        ("prompts", "prompt"),
        ("prompts[0]", "prompt[0]"),
        ("prompts[1].text", "prompt[1]"),
        ("prompts[1].token_ids.ids", "prompt[1]"),
        ("prompts[1].token_ids.ids[3]", "prompt[1][3]"),
        ("conversation.messages[0].role", "messages[0].role"),
        ("conversation.prompt.continue_final_message", "continue_final_message"),
        ("token_ids[2]", "tokens[2]"),
        ("modalities[0]", "modalities[0]"),
    ],
)
def test_proto_path_has_openais_name(field: str, param: str) -> None:
    assert param_of(field) == param
