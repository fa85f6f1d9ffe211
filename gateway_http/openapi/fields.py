"""What the document says of a request's fields beside their types: a sentence, and real limits.

The structs hold what the wire can carry and the service decides what makes sense; these are its
limits, for readers.
"""

from typing import Any, NamedTuple

_Schema = dict[str, Any]


class Field(NamedTuple):
    text: str
    limits: _Schema = {}  # noqa: RUF012  # nobody writes to it


def _within(low: float, high: float) -> _Schema:
    return {"minimum": low, "maximum": high}


_TOKENS: _Schema = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "maximum": 2**32 - 1},
    "minItems": 1,
}
_IDENTIFIER: _Schema = {"maxLength": 512}
_STOP: _Schema = {"type": "string", "minLength": 1, "maxLength": 256}

FIELDS = {
    "model": Field("A model's id or alias, as GET /models lists them."),
    "messages": Field("The conversation so far."),
    "prompt": Field("A text, texts, the token ids of one prompt, or those of several."),
    "temperature": Field("0 is greedy. Absent: the model's own default.", _within(0, 2)),
    "top_p": Field(
        "Sample from the smallest set of tokens whose probability reaches this sum.", _within(0, 1)
    ),
    "top_k": Field("Sample from this many most likely tokens; 0 and -1 are no limit."),
    "min_p": Field(
        "Drop tokens less likely than this share of the most likely one's probability.",
        _within(0, 1),
    ),
    "presence_penalty": Field(
        "Subtracted once from the logit of every token the answer already has.", _within(-2, 2)
    ),
    "frequency_penalty": Field(
        "Subtracted from a token's logit for each time the answer already has it.", _within(-2, 2)
    ),
    "repetition_penalty": Field(
        "Divides positive and multiplies negative logits of tokens already seen; 1 is none.",
        {"exclusiveMinimum": 0},
    ),
    "repeat_penalty": Field("llama.cpp's name for repetition_penalty.", {"exclusiveMinimum": 0}),
    "max_tokens": Field(
        "The longest answer, in tokens; clamped to what the context leaves. Absent: all of that in "
        "a chat, 16 in a text completion, where 0 scores an echoed prompt alone. -1 is all "
        "of that in both."
    ),
    "max_completion_tokens": Field("The newer name of max_tokens.", {"minimum": -1}),
    "min_tokens": Field("End-of-sequence is not chosen before this many tokens."),
    "seed": Field("The same seed with the same request gives the same answer."),
    "n": Field("How many choices to make of one prompt. Absent: 1."),
    "stop": Field(
        "The answer ends before the first of these strings.",
        {"anyOf": [_STOP, {"type": "array", "items": _STOP, "maxItems": 64}, {"type": "null"}]},
    ),
    "stop_token_ids": Field("The answer ends with the first of these tokens."),
    "logit_bias": Field(
        "By token id, added to the token's logit: -100 to 100.",
        {
            "anyOf": [
                {
                    "type": "object",
                    "propertyNames": {"pattern": "^(0|[1-9][0-9]{0,9})$"},
                    "additionalProperties": {"type": "number", **_within(-100, 100)},
                },
                {"type": "null"},
            ]
        },
    ),
    "ignore_eos": Field("Go on past the model's end-of-sequence tokens; for load tests."),
    "include_stop_str_in_output": Field("Leave the matched stop string in the answer."),
    "skip_special_tokens": Field("Leave special tokens out of the text. Absent: true."),
    "bad_words": Field("Strings that are never generated."),
    "allowed_token_ids": Field("Only these token ids are generated."),
    "stream": Field("Answer with server-sent events."),
    "stream_options": Field("Legal together with stream only."),
    "tools": Field("The functions the model may call."),
    "tool_choice": Field("Absent: none without tools, otherwise auto."),
    "parallel_tool_calls": Field("Whether one answer may make several calls. Absent: true."),
    "response_format": Field("The form the answer must take. Absent: free text."),
    "structured_outputs": Field("vLLM's way to ask for a form; exactly one of its fields."),
    "logprobs": Field(
        "Return the log probability of each token: in a chat a boolean, in a text completion the "
        "number of alternatives."
    ),
    "top_logprobs": Field("How many alternatives to return with each.", _within(0, 20)),
    "prompt_logprobs": Field(
        "Return those of the prompt's tokens too, with this many alternatives.", _within(0, 20)
    ),
    "return_token_ids": Field("Return the token ids of the prompt and of the answer."),
    "reasoning_effort": Field("How much a reasoning model thinks before it answers."),
    "verbosity": Field("How long an answer should be; for models trained to follow it."),
    "modalities": Field("Text alone is served."),
    "audio": Field("For models that speak."),
    "prediction": Field("Text the answer is expected to repeat largely."),
    "chat_template_kwargs": Field("Variables for the model's chat template."),
    "add_generation_prompt": Field("End the prompt where the assistant is to speak. Absent: true."),
    "continue_final_message": Field("Continue the last message instead of answering it."),
    "truncate_prompt_tokens": Field("Keep only the last tokens of a longer prompt."),
    "priority": Field(
        "Among the requests of one caller, those with a lower value run first. Absent: 0, or the "
        "lowest that the key may set if that is higher."
    ),
    "cache_salt": Field(
        "What is cached of a prompt is shared only among requests with an equal salt.",
        {"maxLength": 512},
    ),
    "request_id": Field(
        "The request's id, where the header X-Request-Id does not name it.",
        {"pattern": "^[!-~]{1,128}$"},
    ),
    "echo": Field("Put the prompt before the answer, and its tokens among the logprobs."),
    "suffix": Field("Text that is to follow the answer; for models trained to fill in."),
    "best_of": Field("No more than n."),
    "add_special_tokens": Field("Put the model's own start and end tokens around a text."),
    "add_special": Field("llama.cpp's name for add_special_tokens."),
    "content": Field("llama.cpp's name for prompt; no special tokens are added unless asked for."),
    "return_token_strs": Field("Return each token's text beside its id."),
    "with_pieces": Field("As return_token_strs, in llama.cpp's form."),
    "parse_special": Field("Special tokens written out in a text are those tokens: true."),
    "tokens": Field("Token ids."),
    "user": Field("Accepted, without effect on the answer.", _IDENTIFIER),
    "safety_identifier": Field("Accepted, without effect on the answer.", _IDENTIFIER),
    "metadata": Field(
        "Accepted, without effect on the answer: up to 16 pairs.",
        {"maxProperties": 16},
    ),
    "store": Field("Accepted. Nothing is ever stored."),
    "prompt_cache_key": Field("Accepted, without effect on the answer.", _IDENTIFIER),
    "service_tier": Field("Accepted. There is one tier.", _IDENTIFIER),
    "prompt_cache_options": Field("Accepted, without effect on the answer."),
    "prompt_cache_retention": Field("Accepted, without effect on the answer."),
}

# Where a field has other limits in one kind of request.
LIMITS: dict[tuple[str, str], _Schema] = {
    ("ChatCompletionRequest", "max_tokens"): {"minimum": -1},
    ("CompletionRequest", "logprobs"): _within(0, 20),
    ("CompletionRequest", "truncate_prompt_tokens"): {"minimum": 1},
    ("CompletionRequest", "prompt"): {
        "anyOf": [
            {"type": "string"},
            {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 128},
            _TOKENS,
            {"type": "array", "items": _TOKENS, "minItems": 1, "maxItems": 128},
        ]
    },
}
