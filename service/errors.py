"""Every way a request or a start can fail, by cause. No wire here: `rpc` maps these to statuses.

::

    ChatrpcError
    ├── InvalidField             the caller's mistake, at a named field
    │   ├── MissingField
    │   ├── UnsupportedField     an option that is not served
    │   ├── ContextLengthExceeded
    │   ├── ExceedsLimit         of the caller's key, by itself
    │   └── TemplateRefused
    ├── UnsupportedMethod        a method that the model's backend does not implement
    ├── ModelNotFound
    ├── Unauthenticated
    ├── ActingForbidden
    ├── ModelForbidden
    ├── LimitReached             of the caller's key, on any replica
    ├── Unavailable              another replica may take the request
    │   ├── QueueFull
    │   │   ├── PreparationFull
    │   │   └── TooManyStreams
    │   ├── Draining
    │   └── Starting
    ├── DeadlinePassed
    ├── StepFailed               the engine goes on without the request
    │   └── ConstraintFailed
    ├── EngineDead
    └── ModelLoadError           at start only; ends the process
"""


class ChatrpcError(Exception):
    """The root; its text is meant for the caller."""


class InvalidField(ChatrpcError):
    """A field is malformed or out of range.

    Clients of the gateway know some fields by other names. So `words` do not name the field.

    Args:
        field: Its path in the request's parameters.
        words: A sentence, or what follows the field in one. The latter begins with a small letter,
            such as "must be at least 1.".
    """

    def __init__(self, field: str, words: str) -> None:
        super().__init__(f"{field} {words}" if words[:1].islower() else words)
        self.field = field
        self.words = words


class MissingField(InvalidField):
    """A required field is absent."""

    def __init__(self, field: str) -> None:
        super().__init__(field, "is required.")


class UnsupportedField(InvalidField):
    """An option that this service, or the model, does not serve."""


class ContextLengthExceeded(InvalidField):
    """The prompt leaves no room for an answer.

    `prompt_tokens` is at least what the prompt has: hopeless ones are not tokenized to the end.
    `words` say what `field` is, where its name does not.
    """

    def __init__(
        self, prompt_tokens: int, max_model_len: int, field: str = "messages", words: str = ""
    ) -> None:
        words = words or field
        super().__init__(
            field,
            f"This model's maximum context length is {max_model_len} tokens. "
            f"However, your {words} resulted in {prompt_tokens} tokens. "
            f"Please reduce the length of the {words}.",
        )
        self.prompt_tokens = prompt_tokens
        self.max_model_len = max_model_len


class ExceedsLimit(InvalidField):
    """The request alone exceeds a limit of its key, so it can never be admitted."""


class TemplateRefused(InvalidField):
    """The model's chat template raised on the conversation; the text is the template's."""

    def __init__(self, message: str) -> None:
        super().__init__("messages", f"The model's chat template refused the messages: {message}")


class UnsupportedMethod(ChatrpcError):
    """The model's backend does not implement the method."""

    def __init__(self, method: str, model: str) -> None:
        super().__init__(f"The model `{model}` does not support {method}.")


class ModelNotFound(ChatrpcError):
    """No model with this name is served.

    The message names no other model: the caller may not be permitted to know of it.
    """

    def __init__(self, model: str) -> None:
        super().__init__(
            f"The model `{model}` does not exist. The list of models has those that you may use."
        )
        self.model = model


class Unauthenticated(ChatrpcError):
    """The call has no key, or one that is not known here."""

    def __init__(self, *, is_missing: bool) -> None:
        super().__init__(
            "An API key is required: authorization: Bearer KEY."
            if is_missing
            else "The API key is not known here."
        )


class ActingForbidden(ChatrpcError):
    """The call names another caller, and its key may not act for others."""

    def __init__(self, metadata_key: str) -> None:
        super().__init__(
            f"This API key may not act for other callers, as {metadata_key} asks for. Its entry in "
            "the service's file of keys needs `may_act_for_others = true`."
        )


class ModelForbidden(ChatrpcError):
    """The caller's key is not for this model."""

    def __init__(self, model: str) -> None:
        super().__init__(f"This API key may not use the model `{model}`.")
        self.model = model


class LimitReached(ChatrpcError):
    """The caller's key has used up what it may. `what`: requests, tokens, concurrent requests."""

    def __init__(self, message: str, what: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.what = what
        self.retry_after_s = retry_after_s


class Unavailable(ChatrpcError):
    """Not now, not here. `retry_after_s` is how long to wait before trying this replica again.

    Another may be tried after `elsewhere_after_s`.
    """

    elsewhere_after_s = 0.1  # by then those who balance by its health know of its draining

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueFull(Unavailable):
    """As many sequences wait as may, or the caller has its share of them (`is_share`)."""

    def __init__(
        self, max_queue_size: int, retry_after_s: float, *, is_share: bool = False
    ) -> None:
        what = (
            f"This caller has its share of the waiting queue ({max_queue_size} sequences)"
            if is_share
            else f"The waiting queue is full ({max_queue_size} sequences)"
        )
        super().__init__(f"{what}. Please retry later.", retry_after_s)


class PreparationFull(QueueFull):
    """As many requests are being read, tokenized and checked as may be at once."""

    def __init__(self) -> None:
        Unavailable.__init__(
            self, "Too many requests are being prepared. Please retry later.", retry_after_s=1.0
        )


class TooManyStreams(QueueFull):
    """A stream without a key was ended to make room for another client's."""

    def __init__(self) -> None:
        Unavailable.__init__(
            self, "Too many streams are open. This one was the oldest of its client.", 1.0
        )


class Draining(Unavailable):
    def __init__(self) -> None:
        super().__init__("The service is shutting down. Please retry on another replica.", 1.0)


class Starting(Unavailable):
    def __init__(self) -> None:
        super().__init__("The model is being loaded. Please retry later.", 2.0)


class DeadlinePassed(ChatrpcError):
    """The caller's deadline passed, or would pass before the request's turn came."""


class StepFailed(ChatrpcError):
    """A step of the engine could not be computed, and with it the requests that were in it."""

    def __init__(
        self, message: str = "The model failed while it computed this request. Others go on."
    ) -> None:
        super().__init__(message)


class ConstraintFailed(StepFailed):
    """What follows a request's grammar has failed, and with it this request alone."""

    def __init__(self) -> None:
        super().__init__("The grammar of the answer failed while it was followed. Others go on.")


class EngineDead(ChatrpcError):
    def __init__(self) -> None:
        super().__init__("The engine has failed and the service is about to exit.")


class ModelLoadError(ChatrpcError):
    """The model is missing, corrupt or of a kind that cannot be served."""


class InvalidGrammar(Exception):
    """A grammar that cannot be compiled; who asked for it says in which field it stood."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its type if it has no message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
