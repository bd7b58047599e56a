"""TF Serving's messages and services, on their public field numbers.

`tf_serving_grpc` and `tensor_proto` read and write them. Left out are fields that no server but
TensorFlow's own can answer; a message keeps what it does not know.
"""

from keras_deepseek.inference.protocols.messages import Protocol

_TENSORFLOW: dict[str, str | dict[str, int]] = {
    "DataType": {
        "DT_INVALID": 0,
        "DT_FLOAT": 1,
        "DT_DOUBLE": 2,
        "DT_INT32": 3,
        "DT_UINT8": 4,
        "DT_INT16": 5,
        "DT_INT8": 6,
        "DT_STRING": 7,
        "DT_COMPLEX64": 8,
        "DT_INT64": 9,
        "DT_BOOL": 10,
        "DT_QINT8": 11,
        "DT_QUINT8": 12,
        "DT_QINT32": 13,
        "DT_BFLOAT16": 14,
        "DT_QINT16": 15,
        "DT_QUINT16": 16,
        "DT_UINT16": 17,
        "DT_COMPLEX128": 18,
        "DT_HALF": 19,
        "DT_RESOURCE": 20,
        "DT_VARIANT": 21,
        "DT_UINT32": 22,
        "DT_UINT64": 23,
    },
    "TensorShapeProto": """
        dim 2 repeated Dim
        unknown_rank 3 bool
    """,
    "TensorShapeProto.Dim": """
        size 1 int64
        name 2 string
    """,
    "TensorProto": """
        dtype 1 DataType
        tensor_shape 2 TensorShapeProto
        version_number 3 int32
        tensor_content 4 bytes
        float_val 5 repeated float
        double_val 6 repeated double
        int_val 7 repeated int32
        string_val 8 repeated bytes
        scomplex_val 9 repeated float
        int64_val 10 repeated int64
        bool_val 11 repeated bool
        dcomplex_val 12 repeated double
        half_val 13 repeated int32
        uint32_val 16 repeated uint32
        uint64_val 17 repeated uint64
    """,
    "BytesList": "value 1 repeated bytes",
    "FloatList": "value 1 repeated float",
    "Int64List": "value 1 repeated int64",
    "Feature": """
        bytes_list 1 BytesList oneof kind
        float_list 2 FloatList oneof kind
        int64_list 3 Int64List oneof kind
    """,
    "Features": "feature 1 map string Feature",
    "Example": "features 1 Features",
    "TensorInfo": """
        name 1 string oneof encoding
        dtype 2 DataType
        tensor_shape 3 TensorShapeProto
    """,
    "SignatureDef": """
        inputs 1 map string TensorInfo
        outputs 2 map string TensorInfo
        method_name 3 string
    """,
}

_CODES = {
    "OK": 0,
    "CANCELLED": 1,
    "UNKNOWN": 2,
    "INVALID_ARGUMENT": 3,
    "DEADLINE_EXCEEDED": 4,
    "NOT_FOUND": 5,
    "ALREADY_EXISTS": 6,
    "PERMISSION_DENIED": 7,
    "RESOURCE_EXHAUSTED": 8,
    "FAILED_PRECONDITION": 9,
    "ABORTED": 10,
    "OUT_OF_RANGE": 11,
    "UNIMPLEMENTED": 12,
    "INTERNAL": 13,
    "UNAVAILABLE": 14,
    "DATA_LOSS": 15,
    "UNAUTHENTICATED": 16,
}

_PREDICTION: dict[str, str | dict[str, int]] = {
    "ModelSpec": """
        name 1 string
        version 2 google.protobuf.Int64Value oneof version_choice
        version_label 4 string oneof version_choice
        signature_name 3 string
    """,
    "PredictRequest": """
        model_spec 1 ModelSpec
        inputs 2 map string tensorflow.TensorProto
        output_filter 3 repeated string
    """,
    "PredictResponse": """
        outputs 1 map string tensorflow.TensorProto
        model_spec 2 ModelSpec
    """,
    "ExampleList": "examples 1 repeated tensorflow.Example",
    "ExampleListWithContext": """
        examples 1 repeated tensorflow.Example
        context 2 tensorflow.Example
    """,
    "Input": """
        example_list 1 ExampleList oneof kind
        example_list_with_context 2 ExampleListWithContext oneof kind
    """,
    "Class": """
        label 1 string
        score 2 float
    """,
    "Classifications": "classes 1 repeated Class",
    "ClassificationResult": "classifications 1 repeated Classifications",
    "ClassificationRequest": """
        model_spec 1 ModelSpec
        input 2 Input
    """,
    "ClassificationResponse": """
        result 1 ClassificationResult
        model_spec 2 ModelSpec
    """,
    "Regression": "value 1 float",
    "RegressionResult": "regressions 1 repeated Regression",
    "RegressionRequest": """
        model_spec 1 ModelSpec
        input 2 Input
    """,
    "RegressionResponse": """
        result 1 RegressionResult
        model_spec 2 ModelSpec
    """,
    "InferenceTask": """
        model_spec 1 ModelSpec
        method_name 2 string
    """,
    "InferenceResult": """
        model_spec 1 ModelSpec
        classification_result 2 ClassificationResult oneof result
        regression_result 3 RegressionResult oneof result
    """,
    "MultiInferenceRequest": """
        tasks 1 repeated InferenceTask
        input 2 Input
    """,
    "MultiInferenceResponse": "results 1 repeated InferenceResult",
    "SignatureDefMap": "signature_def 1 map string tensorflow.SignatureDef",
    "GetModelMetadataRequest": """
        model_spec 1 ModelSpec
        metadata_field 2 repeated string
    """,
    "GetModelMetadataResponse": """
        model_spec 1 ModelSpec
        metadata 2 map string google.protobuf.Any
    """,
}

_MANAGEMENT: dict[str, str | dict[str, int]] = {
    "StatusProto": """
        error_code 1 tensorflow.error.Code
        error_message 2 string
    """,
    "GetModelStatusRequest": "model_spec 1 ModelSpec",
    "ModelVersionStatus": """
        version 1 int64
        state 2 State
        status 3 StatusProto
    """,
    "ModelVersionStatus.State": {
        "UNKNOWN": 0,
        "START": 10,
        "LOADING": 20,
        "AVAILABLE": 30,
        "UNLOADING": 40,
        "END": 50,
    },
    "GetModelStatusResponse": "model_version_status 1 repeated ModelVersionStatus",
    "FileSystemStoragePathSourceConfig": "",
    "FileSystemStoragePathSourceConfig.ServableVersionPolicy": """
        latest 100 Latest oneof policy_choice
        all 101 All oneof policy_choice
        specific 102 Specific oneof policy_choice
    """,
    "FileSystemStoragePathSourceConfig.ServableVersionPolicy.Latest": "num_versions 1 uint32",
    "FileSystemStoragePathSourceConfig.ServableVersionPolicy.All": "",
    "FileSystemStoragePathSourceConfig.ServableVersionPolicy.Specific": "versions 1 repeated int64",
    "ModelType": {"MODEL_TYPE_UNSPECIFIED": 0, "TENSORFLOW": 1, "OTHER": 2},
    "ModelConfig": """
        name 1 string
        base_path 2 string
        model_type 3 ModelType
        model_platform 4 string
        model_version_policy 7 FileSystemStoragePathSourceConfig.ServableVersionPolicy
        version_labels 8 map string int64
    """,
    "ModelConfigList": "config 1 repeated ModelConfig",
    "ModelServerConfig": """
        model_config_list 1 ModelConfigList oneof config
        custom_model_config 2 google.protobuf.Any oneof config
    """,
    "ReloadConfigRequest": """
        config 1 ModelServerConfig
        metric_names 2 repeated string
    """,
    "Metric": """
        name 1 string
        int64_value_increase 2 int64 oneof value_increase
    """,
    "ReloadConfigResponse": """
        status 1 StatusProto
        metric 2 repeated Metric
    """,
}

TF_SERVING = Protocol(
    packages={
        "google.protobuf": {
            "Any": """
                type_url 1 string
                value 2 bytes
            """,
            "Int64Value": "value 1 int64",
        },
        "tensorflow": _TENSORFLOW,
        "tensorflow.error": {"Code": _CODES},
        "tensorflow.serving": {**_PREDICTION, **_MANAGEMENT},
    },
    services={
        "tensorflow.serving.PredictionService": {
            "Predict": ("PredictRequest", "PredictResponse"),
            "Classify": ("ClassificationRequest", "ClassificationResponse"),
            "Regress": ("RegressionRequest", "RegressionResponse"),
            "MultiInference": ("MultiInferenceRequest", "MultiInferenceResponse"),
            "GetModelMetadata": ("GetModelMetadataRequest", "GetModelMetadataResponse"),
        },
        "tensorflow.serving.ModelService": {
            "GetModelStatus": ("GetModelStatusRequest", "GetModelStatusResponse"),
            "HandleReloadConfigRequest": ("ReloadConfigRequest", "ReloadConfigResponse"),
        },
    },
)
"""TF Serving's protocol over gRPC."""
