"""Open Inference's messages and service, on their public field numbers.

`open_inference_grpc` reads and writes them. Loading and unloading a model is the one place where
KServe's numbers and Triton's differ: the fields are Triton's, and KServe's `model_name`, number 1,
stands where Triton has the name of a repository. The answers to both are KServe's; Triton's are
empty.
"""

from keras_deepseek.inference.protocols.messages import Protocol

_NAME_AND_VERSION = """
    name 1 string
    version 2 string
"""
_TENSOR_METADATA = """
    name 1 string
    datatype 2 string
    shape 3 repeated int64
"""
_TENSOR = """
    name 1 string
    datatype 2 string
    shape 3 repeated int64
    parameters 4 map string InferParameter
    contents 5 InferTensorContents
"""
_MODEL_REQUEST = """
    repository_name 1 string
    model_name 2 string
    parameters 3 map string ModelRepositoryParameter
"""

_MODEL: dict[str, str | dict[str, int]] = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "live 1 bool",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "ready 1 bool",
    "ModelReadyRequest": _NAME_AND_VERSION,
    "ModelReadyResponse": "ready 1 bool",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": """
        name 1 string
        version 2 string
        extensions 3 repeated string
    """,
    "ModelMetadataRequest": _NAME_AND_VERSION,
    "ModelMetadataResponse": """
        name 1 string
        versions 2 repeated string
        platform 3 string
        inputs 4 repeated TensorMetadata
        outputs 5 repeated TensorMetadata
    """,
    "ModelMetadataResponse.TensorMetadata": _TENSOR_METADATA,
}

_INFERENCE: dict[str, str | dict[str, int]] = {
    "InferParameter": """
        bool_param 1 bool oneof parameter_choice
        int64_param 2 int64 oneof parameter_choice
        string_param 3 string oneof parameter_choice
        double_param 4 double oneof parameter_choice
        uint64_param 5 uint64 oneof parameter_choice
    """,
    "InferTensorContents": """
        bool_contents 1 repeated bool
        int_contents 2 repeated int32
        int64_contents 3 repeated int64
        uint_contents 4 repeated uint32
        uint64_contents 5 repeated uint64
        fp32_contents 6 repeated float
        fp64_contents 7 repeated double
        bytes_contents 8 repeated bytes
    """,
    "ModelInferRequest": """
        model_name 1 string
        model_version 2 string
        id 3 string
        parameters 4 map string InferParameter
        inputs 5 repeated InferInputTensor
        outputs 6 repeated InferRequestedOutputTensor
        raw_input_contents 7 repeated bytes
    """,
    "ModelInferRequest.InferInputTensor": _TENSOR,
    "ModelInferRequest.InferRequestedOutputTensor": """
        name 1 string
        parameters 2 map string InferParameter
    """,
    "ModelInferResponse": """
        model_name 1 string
        model_version 2 string
        id 3 string
        parameters 4 map string InferParameter
        outputs 5 repeated InferOutputTensor
        raw_output_contents 6 repeated bytes
    """,
    "ModelInferResponse.InferOutputTensor": _TENSOR,
    "ModelStreamInferResponse": """
        error_message 1 string
        infer_response 2 ModelInferResponse
    """,
}

_REPOSITORY: dict[str, str | dict[str, int]] = {
    "ModelRepositoryParameter": """
        bool_param 1 bool oneof parameter_choice
        int64_param 2 int64 oneof parameter_choice
        string_param 3 string oneof parameter_choice
        bytes_param 4 bytes oneof parameter_choice
    """,
    "RepositoryIndexRequest": """
        repository_name 1 string
        ready 2 bool
    """,
    "RepositoryIndexResponse": "models 1 repeated ModelIndex",
    "RepositoryIndexResponse.ModelIndex": """
        name 1 string
        version 2 string
        state 3 string
        reason 4 string
    """,
    "RepositoryModelLoadRequest": _MODEL_REQUEST,
    "RepositoryModelLoadResponse": """
        model_name 1 string
        isLoaded 2 bool
    """,
    "RepositoryModelUnloadRequest": _MODEL_REQUEST,
    "RepositoryModelUnloadResponse": """
        model_name 1 string
        isUnloaded 2 bool
    """,
}

OPEN_INFERENCE = Protocol(
    packages={"inference": {**_MODEL, **_INFERENCE, **_REPOSITORY}},
    services={
        "inference.GRPCInferenceService": {
            **{
                name: (f"{name}Request", f"{name}Response")
                for name in (
                    "ServerLive",
                    "ServerReady",
                    "ModelReady",
                    "ServerMetadata",
                    "ModelMetadata",
                    "ModelInfer",
                    "RepositoryIndex",
                    "RepositoryModelLoad",
                    "RepositoryModelUnload",
                )
            },
            "ModelStreamInfer": ("stream ModelInferRequest", "stream ModelStreamInferResponse"),
        },
    },
)
"""Open Inference's protocol over gRPC."""
