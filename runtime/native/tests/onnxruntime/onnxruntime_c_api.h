// For tests alone; your program includes the header that comes with its ONNX Runtime.
//
// The packages that tests can get hold ONNX Runtime's library and none of its headers. So this states those entries of its
// C interface that vosrt_onnxruntime.hpp calls, at their places in the table, and lets the adapter run on the real library. The
// table only ever grows at its end, as ONNX Runtime promises: it asserts, of version 1, that ReleaseCustomOpDomain is entry 101.
#pragma once

#include <cstddef>
#include <cstdint>

#define ORT_API_VERSION 5  // the first that has all entries below
#define ORT_API_CALL

struct OrtEnv;
struct OrtMemoryInfo;
struct OrtRunOptions;
struct OrtSession;
struct OrtSessionOptions;
struct OrtStatus;
struct OrtValue;

enum OrtLoggingLevel {
    ORT_LOGGING_LEVEL_FATAL = 4
};
enum OrtAllocatorType {
    OrtArenaAllocator = 1
};
enum OrtMemType {
    OrtMemTypeDefault = 0
};
enum ONNXTensorElementDataType {
    ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT = 1,
    ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 = 2
};

using Unused = void (*)();

struct OrtApi {
    Unused from_0[2];
    const char *(*GetErrorMessage)(const OrtStatus *status);
    OrtStatus *(*CreateEnv)(OrtLoggingLevel level, const char *log_id, OrtEnv **out);
    Unused from_4[3];
    OrtStatus *(*CreateSession)(const OrtEnv *, const char *path, const OrtSessionOptions *, OrtSession **out);
    OrtStatus *(*CreateSessionFromArray)(const OrtEnv *, const void *model, size_t bytes, const OrtSessionOptions *,
                                         OrtSession **out);
    OrtStatus *(*Run)(OrtSession *, const OrtRunOptions *, const char *const *input_names, const OrtValue *const *inputs,
                      size_t input_count, const char *const *output_names, size_t output_count, OrtValue **outputs);
    OrtStatus *(*CreateSessionOptions)(OrtSessionOptions **out);
    Unused from_11[13];
    OrtStatus *(*SetIntraOpNumThreads)(OrtSessionOptions *, int threads);
    Unused from_25[24];
    OrtStatus *(*CreateTensorWithDataAsOrtValue)(const OrtMemoryInfo *, void *data, size_t bytes, const int64_t *shape,
                                                 size_t rank, ONNXTensorElementDataType, OrtValue **out);
    Unused from_50[19];
    OrtStatus *(*CreateCpuMemoryInfo)(OrtAllocatorType, OrtMemType, OrtMemoryInfo **out);
    Unused from_70[22];
    void (*ReleaseEnv)(OrtEnv *);
    void (*ReleaseStatus)(OrtStatus *);
    void (*ReleaseMemoryInfo)(OrtMemoryInfo *);
    void (*ReleaseSession)(OrtSession *);
    void (*ReleaseValue)(OrtValue *);
    Unused from_97[3];
    void (*ReleaseSessionOptions)(OrtSessionOptions *);
    Unused from_101[29];
    OrtStatus *(*AddSessionConfigEntry)(OrtSessionOptions *, const char *key, const char *value);
};
static_assert(offsetof(OrtApi, CreateTensorWithDataAsOrtValue) == 49 * sizeof(Unused));
static_assert(offsetof(OrtApi, ReleaseSessionOptions) == 100 * sizeof(Unused));
static_assert(offsetof(OrtApi, AddSessionConfigEntry) == 130 * sizeof(Unused));

struct OrtApiBase {
    const OrtApi *(*GetApi)(uint32_t version);
    const char *(*GetVersionString)();
};
extern "C" const OrtApiBase *OrtGetApiBase();
