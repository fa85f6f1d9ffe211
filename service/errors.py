"""The errors of requests and of a start, by cause. `service/rpc` maps them to gRPC statuses.

::

    ChatrpcError
    ├── InvalidField             a field of the request is invalid
    │   ├── MissingField
    │   ├── UnsupportedField     an option that is not served
    │   ├── ContextLengthExceeded
    │   ├── ExceedsLimit         of the key, by one request
    │   └── TemplateRejected
    ├── UnsupportedMethod        a method that the model's backend does not implement
    ├── ModelNotFound
    ├── Unauthenticated
    ├── ActingForbidden
    ├── ModelForbidden
    ├── LimitReached             of the key, for now
    ├── Unavailable              another replica may take the request
    │   ├── QueueFull
    │   │   ├── PreparationFull
    │   │   └── TooManyStreams
    │   ├── Draining
    │   ├── Starting
    │   ├── UpstreamDown
    │   └── UpstreamRateLimited
    ├── UpstreamError            of a remote backend
    │   ├── UpstreamAccessDenied
    │   └── UpstreamInvalidResponse
    ├── DeadlinePassed
    ├── StepFailed               the engine continues without the request
    │   └── ConstraintFailed
    ├── EngineDead
    └── ModelLoadError           ends the process at its start
"""


class ChatrpcError(Exception):
    """The base of all errors of the service. Its text is sent to the client."""


class InvalidField(ChatrpcError):
    """A field is malformed or out of range.

    The gateway has other names for some fields, so `words` do not name the field.

    Args:
        field: Its path in the request's parameters.
        words: A sentence, or the predicate of one whose subject is the field. A predicate begins
            with a small letter, such as "must be at least 1.".
    """

    def __init__(self, field: str, words: str) -> None:
        super().__init__(field, words)
        self.field = field
        self.words = words

    def __str__(self) -> str:
        return f"{self.field} {self.words}" if self.words[:1].islower() else self.words


class MissingField(InvalidField):
    """A required field is absent."""

    def __init__(self, field: str) -> None:
        super().__init__(field, "is required.")


class UnsupportedField(InvalidField):
    """The service or the model does not support an option."""


class ContextLengthExceeded(InvalidField):
    """The prompt leaves no room for a completion.

    Args:
        prompt_tokens: Number of tokens of the prompt. If it is far too long, only its first part is
            tokenized, and this is a lower bound.
        max_model_len: Maximum length of prompt and completion together, in tokens.
        field: The field with the prompt.
        words: A description of the field; "" if its name is sufficient.
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
    """The request by itself exceeds a limit of its key, so it can never be admitted."""


class TemplateRejected(InvalidField):
    """The model's chat template rejected the conversation; the text is the template's."""

    def __init__(self, message: str) -> None:
        super().__init__("messages", f"The model's chat template rejected the messages: {message}")


class UnsupportedMethod(ChatrpcError):
    """The model's backend does not implement the method.

    The gateway may have another name for the model, so the message does not contain the name.
    """

    def __init__(self, method: str, model: str) -> None:
        super().__init__(f"This model does not support {method}.")
        self.model = model


class ModelNotFound(ChatrpcError):
    """No model with this name is served.

    The message names no other model, since the caller may not be permitted to list it.
    """

    def __init__(self, model: str) -> None:
        super().__init__(
            f"The model `{model}` does not exist. The list of models has those that you may use."
        )
        self.model = model


class Unauthenticated(ChatrpcError):
    """The call has no API key, or an unknown one."""

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
    """The API key may not use this model."""

    def __init__(self, model: str) -> None:
        super().__init__(f"This API key may not use the model `{model}`.")
        self.model = model


class LimitReached(ChatrpcError):
    """A limit of the API key is reached.

    Args:
        what: `requests`, `tokens` or `concurrent requests`.
        retry_after_s: Seconds after which a retry may succeed.
    """

    def __init__(self, message: str, what: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.what = what
        self.retry_after_s = retry_after_s


class Unavailable(ChatrpcError):
    """The replica cannot serve the request now.

    Attributes:
        retry_after_s: Seconds after which this replica may be tried again.
        elsewhere_after_s: Seconds after which another replica may be tried; None if it would not
            help.
    """

    elsewhere_after_s: float | None = (
        0.1  # enough for clients that balance by health to notice a drain
    )

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueFull(Unavailable):
    """The queue is full, or if `is_share`, the caller has used its share of the queue."""

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
    """The maximum number of requests is being read, tokenized and checked."""

    def __init__(self) -> None:
        Unavailable.__init__(
            self, "Too many requests are being prepared. Please retry later.", retry_after_s=1.0
        )


class TooManyStreams(QueueFull):
    """A stream without a key was ended because another client opened one."""

    def __init__(self) -> None:
        Unavailable.__init__(
            self, "Too many streams are open. This one was the oldest of its client.", 1.0
        )


class Draining(Unavailable):
    """The service is shutting down."""

    def __init__(self) -> None:
        super().__init__("The service is shutting down. Please retry on another replica.", 1.0)


class Starting(Unavailable):
    """The model is not loaded yet."""

    def __init__(self) -> None:
        super().__init__("The model is being loaded. Please retry later.", 2.0)


class UpstreamDown(Unavailable):
    """No upstream of a remote backend can serve the request now."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message, retry_after_s)


class UpstreamRateLimited(Unavailable):
    """The upstreams reject the request because the service's key has used up a limit."""

    elsewhere_after_s = None  # other replicas have the same key


class UpstreamError(ChatrpcError):
    """An upstream cannot serve any request of this service until its configuration changes."""


class UpstreamAccessDenied(UpstreamError):
    """An upstream rejects the service's key."""


class UpstreamInvalidResponse(UpstreamError):
    """The response of an upstream does not follow OpenAI's API."""


class DeadlinePassed(ChatrpcError):
    """The request's deadline has passed, or would pass before the request could run."""


class StepFailed(ChatrpcError):
    """An engine step failed, and with it the requests in that step."""

    def __init__(
        self,
        message: str = "The model failed while it computed this request. Other requests continue.",
    ) -> None:
        super().__init__(message)


class ConstraintFailed(StepFailed):
    """The matcher of a request's grammar failed. Only this request is affected."""

    def __init__(self) -> None:
        super().__init__("The grammar of the completion failed. Other requests continue.")


class EngineDead(ChatrpcError):
    """The engine has failed; the process ends."""

    def __init__(self) -> None:
        super().__init__("The engine has failed and the service is about to exit.")


class ModelLoadError(ChatrpcError):
    """The model is missing, corrupt or of a kind that cannot be served."""


class InvalidGrammar(Exception):
    """A grammar cannot be compiled. The code that compiles it adds the field of the request."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its type if it has no message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
