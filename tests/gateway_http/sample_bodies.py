"""Request bodies that set every optional field."""

import base64
from typing import Any

HI = {"role": "user", "content": "Hi"}
TOOL = {"type": "function", "function": {"name": "f"}}
SAMPLING: dict[str, Any] = {
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 5,
    "min_p": 0.5,
    "presence_penalty": 1,
    "frequency_penalty": 1,
    "repetition_penalty": 1.5,
    "repeat_penalty": 1.5,
    "max_tokens": 5,
    "n_predict": 5,
    "min_tokens": 1,
    "seed": 5,
    "n": 2,
    "stop": "x",
    "stop_token_ids": [1],
    "logit_bias": {"5": 1.5},
    "ignore_eos": True,
    "include_stop_str_in_output": True,
    "skip_special_tokens": False,
    "bad_words": ["x"],
    "allowed_token_ids": [1],
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "s", "description": "d", "schema": {"a": 1}, "strict": True},
    },
    "structured_outputs": {"regex": "a"},
    "prompt_logprobs": 1,
    "return_token_ids": True,
    "truncate_prompt_tokens": 5,
    "priority": 1,
    "cache_salt": "s",
    "user": "u",
}
CHAT = SAMPLING | {
    "max_completion_tokens": 5,
    "tools": [
        {
            "type": "function",
            "function": {"name": "f", "description": "d", "parameters": {"a": 1}, "strict": True},
        }
    ],
    "tool_choice": TOOL,
    "parallel_tool_calls": False,
    "logprobs": True,
    "top_logprobs": 1,
    "reasoning_effort": "low",
    "verbosity": "low",
    "modalities": ["text"],
    "audio": {"voice": "alto", "format": "wav"},
    "prediction": {"type": "content", "content": "x"},
    "chat_template_kwargs": {"a": 1},
    "add_generation_prompt": False,
    "continue_final_message": True,
    "safety_identifier": "i",
    "metadata": {"a": "b"},
    "store": True,
    "prompt_cache_key": "k",
    "service_tier": "auto",
}
TEXT = SAMPLING | {"echo": True, "logprobs": 1, "suffix": "x", "add_special_tokens": False}
DATA = base64.b64encode(b"x").decode()
CONVERSATION = [
    HI | {"name": "n"},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "t"},
            {"type": "image_url", "image_url": {"url": "u", "detail": "low"}},
            {"type": "input_audio", "input_audio": {"data": DATA, "format": "wav"}},
            {"type": "file", "file": {"file_id": "i", "filename": "n"}},
            {"type": "file", "file": {"file_data": DATA}},
        ],
    },
    {
        "role": "assistant",
        "content": [{"type": "refusal", "refusal": "no"}],
        "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        ],
        "reasoning_content": "r",
    },
    {"role": "assistant", "content": "x", "refusal": "no", "reasoning": "r"},
    {"role": "tool", "content": "x", "tool_call_id": "c"},
]

# Bodies of Anthropic's Messages API, without what every body has.
MESSAGES: list[dict[str, Any]] = [
    {
        "system": [{"type": "text", "text": "Be brief."}],
        "temperature": 0.5,
        "top_p": 0.5,
        "top_k": 5,
        "stop_sequences": ["x"],
        "metadata": {"user_id": "u"},
        "output_config": {
            "effort": "low",
            "format": {"type": "json_schema", "schema": {"type": "object"}},
        },
    },
    {
        "tools": [{"name": "f", "description": "d", "input_schema": {"a": 1}, "strict": True}],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
        "thinking": {"type": "enabled", "budget_tokens": 1024},
    },
    {
        "tools": [{"name": "f"}],
        "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
    },
    {
        "tools": [{"name": "f"}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
    },
    {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Hi"},
                    {"type": "image", "source": {"type": "url", "url": "https://a/b.png"}},
                    {
                        "type": "document",
                        "title": "t",
                        "source": {
                            "type": "base64",
                            "data": "QUI=",
                            "media_type": "application/pdf",
                        },
                    },
                ],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hmm.", "signature": ""},
                    {"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}},
                ],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "c", "content": "1"}],
            },
        ]
    },
]

# Decisions with all kinds of items and questions, without a model.
DECISIONS: tuple[dict[str, Any], ...] = (
    {"input": "Hi", "questions": [{"type": "predicate", "instructions": "It is a greeting."}]},
    {
        "input": [
            {"type": "message", "role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [
                    {
                        "type": "input_text",
                        "text": "Look",
                        "prompt_cache_breakpoint": {"mode": "explicit"},
                    },
                    {"type": "input_image", "image_url": "data:image/png;base64,", "detail": "low"},
                    {"type": "input_json", "data": {"a": [1, 2]}},
                ],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "output_text", "text": "Yes."},
                    {"type": "refusal", "refusal": "No."},
                ],
                "phase": "commentary",
            },
            {
                "type": "function_call",
                "call_id": "c1",
                "name": "f",
                "arguments": "{}",
                "namespace": "n",
                "status": "completed",
                "id": "fc_1",
            },
            {
                "type": "function_call_output",
                "call_id": "c1",
                "output": [{"type": "input_text", "text": "ok"}],
            },
            {"type": "custom_tool_call", "call_id": "c2", "name": "g", "input": "x"},
            {"type": "custom_tool_call_output", "call_id": "c2", "output": "done"},
        ],
        "questions": [
            {
                "type": "choice",
                "name": "which",
                "instructions": [
                    {"type": "input_text", "text": "Which?"},
                    {"type": "input_json", "data": [{"b": 1}]},
                ],
                "choices": [{"value": "a", "description": "the first"}, {"value": True}],
            },
            {
                "type": "score",
                "instructions": "How good?",
                "levels": [{"label": "bad", "description": "the worst"}, {"label": "good"}],
            },
        ],
        "prompt_cache_key": "k",
        "prompt_cache_options": {"mode": "implicit", "ttl": "30m"},
        "safety_identifier": "s",
        "priority": 1,
        "cache_salt": "salt",
    },
)

# Bodies of OpenAI's Responses API, without what every body has.
RESPONSES: list[dict[str, Any]] = [
    {
        "instructions": "Be brief.",
        "temperature": 0.5,
        "top_p": 0.5,
        "top_k": 5,
        "min_p": 0.5,
        "presence_penalty": 1,
        "frequency_penalty": 1,
        "repetition_penalty": 1.5,
        "seed": 5,
        "stop": ["x"],
        "priority": 1,
        "cache_salt": "s",
        "chat_template_kwargs": {"a": 1},
        "max_output_tokens": 5,
        "top_logprobs": 1,
        "include": ["message.output_text.logprobs"],
        "reasoning": {"effort": "low", "summary": "auto"},
        "text": {
            "verbosity": "low",
            "format": {
                "type": "json_schema",
                "name": "s",
                "description": "d",
                "schema": {"a": 1},
                "strict": True,
            },
        },
        "metadata": {"a": "b"},
        "user": "u",
        "safety_identifier": "i",
        "prompt_cache_key": "k",
        "service_tier": "auto",
    },
    {
        "tools": [
            {
                "type": "function",
                "name": "f",
                "description": "d",
                "parameters": {"a": 1},
                "strict": True,
            },
            {
                "type": "custom",
                "name": "g",
                "description": "d",
                "format": {"type": "grammar", "syntax": "regex", "definition": "a+"},
            },
        ],
        "tool_choice": {
            "type": "allowed_tools",
            "mode": "auto",
            "tools": [{"type": "function", "name": "f"}],
        },
        "parallel_tool_calls": False,
    },
    {
        "tools": [{"type": "function", "name": "f"}],
        "tool_choice": {"type": "function", "name": "f"},
    },
    {"tools": [{"type": "custom", "name": "g"}], "tool_choice": {"type": "custom", "name": "g"}},
    {"tools": [{"type": "custom", "name": "g"}], "tool_choice": "required"},
    {
        "input": [
            {
                "type": "message",
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "t"},
                    {"type": "input_image", "image_url": "https://a/b.png", "detail": "low"},
                    {"type": "input_file", "file_id": "i", "filename": "n"},
                    {"type": "input_file", "file_data": DATA},
                ],
            },
            {
                "type": "reasoning",
                "summary": [{"type": "summary_text", "text": "Hm."}],
                "content": [{"type": "reasoning_text", "text": "Hmm."}],
            },
            {
                "type": "reasoning",
                "summary": [{"type": "summary_text", "text": "Hm."}],
            },
            {
                "type": "message",
                "role": "assistant",
                "content": [
                    {"type": "output_text", "text": "t", "annotations": []},
                    {"type": "refusal", "refusal": "no"},
                ],
            },
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "custom_tool_call", "call_id": "d", "name": "g", "input": "a"},
            {"type": "function_call_output", "call_id": "c", "output": "1"},
            {"type": "custom_tool_call_output", "call_id": "d", "output": "2"},
        ]
    },
]
