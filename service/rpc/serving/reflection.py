"""Server reflection under both of its names, `grpc.reflection.v1` and `v1alpha`.

grpcio-reflection serves only v1alpha. Newer tools need v1, whose messages are the same:
https://github.com/grpc/grpc-proto/blob/master/grpc/reflection/v1/reflection.proto
"""

from collections.abc import Iterable

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from grpc_reflection.v1alpha import reflection, reflection_pb2

V1 = "grpc.reflection.v1.ServerReflection"
_V1_FILE = "grpc/reflection/v1/reflection.proto"


def enable_reflection(server: grpc.aio.Server, service_names: Iterable[str]) -> None:
    """Serve the protos of these services, and of reflection itself, to clients of `server`."""
    _describe_v1()
    servicer = reflection.aio.ReflectionServicer((*service_names, reflection.SERVICE_NAME, V1))
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        tuple(
            grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler})
            for name in (reflection.SERVICE_NAME, V1)
        )
    )


def _describe_v1() -> None:
    """Add the proto of v1 to protobuf's default pool, unless a package has added it already."""
    pool = descriptor_pool.Default()
    try:
        pool.FindFileByName(_V1_FILE)
    except KeyError:
        file = descriptor_pb2.FileDescriptorProto()
        reflection_pb2.DESCRIPTOR.CopyToProto(file)
        text = text_format.MessageToString(file)
        renamed = text_format.Parse(
            text.replace("grpc.reflection.v1alpha", "grpc.reflection.v1"),
            descriptor_pb2.FileDescriptorProto(),
        )
        renamed.name = _V1_FILE
        renamed.ClearField("options")
        pool.Add(renamed)
