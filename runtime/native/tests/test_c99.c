/* The header is C99, and the interface does from C what it says: a square is tracked, mistakes come back as status codes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vosrt.h"

#define CHECK(condition)                                                                                                   \
    do {                                                                                                                   \
        if (!(condition)) {                                                                                                \
            fprintf(stderr, "%s:%d: not true: %s (last error: %s)\n", __FILE__, __LINE__, #condition, vosrt_last_error()); \
            return 1;                                                                                                      \
        }                                                                                                                  \
    } while (0)

enum {
    GRID = 8,
    CHANNELS = 64,
    SIDE = 64
};

/* An object leaves, a ghost of it stays, and it comes back; what an older program knows of vosrt_object stays within its bounds. */
static int check_states(void) {
    static const int64_t areas[] = {1000, 1000, 20, 20, 0, 20, 900};
    static const int32_t states[] = {VOSRT_STATE_PRESENT, VOSRT_STATE_PRESENT, VOSRT_STATE_UNSURE, VOSRT_STATE_UNSURE,
                                     VOSRT_STATE_LOST, VOSRT_STATE_LOST, VOSRT_STATE_BACK};
    static const uint8_t labels[4] = {3, 0, 3, 0}, ids[2] = {3, 4};
    vosrt_presence presence;
    vosrt_object object, two[2];
    memset(&presence, 0, sizeof presence);
    memset(&object, 0, sizeof object);
    memset(two, 0, sizeof two);
    CHECK(vosrt_follow_object(&presence, 0, &object) == VOSRT_INVALID_ARGUMENT);
    presence.struct_size = sizeof presence;
    object.struct_size = sizeof object;
    object.confidence = 0.75f;
    for (int t = 0; t < 7; ++t) {
        object.area_px = areas[t];
        CHECK(vosrt_follow_object(&presence, t, &object) == VOSRT_OK);
        CHECK(object.state == states[t] && object.state_confidence >= 0.0f && object.state_confidence <= 1.0f);
    }
    CHECK(vosrt_follow_object(&presence, 3, &object) == VOSRT_INVALID_ARGUMENT);
    CHECK(vosrt_measure_objects(labels, NULL, 2, 2, ids, 2, two) == VOSRT_INVALID_ARGUMENT);
    two[0].struct_size = sizeof *two;
    CHECK(vosrt_measure_objects(labels, NULL, 2, 2, ids, 2, two) == VOSRT_OK);
    CHECK(two[0].id == 3 && two[0].area_px == 2 && two[0].state == VOSRT_STATE_PRESENT);
    CHECK(two[1].id == 4 && two[1].area_px == 0 && two[1].state == VOSRT_STATE_LOST);
    two[0].struct_size = 56; /* as first published */
    two[1].state_confidence = 7.0f;
    CHECK(vosrt_measure_objects(labels, NULL, 2, 2, ids, 2, two) == VOSRT_OK);
    CHECK(((const vosrt_object *)((const char *)two + 56))->id == 4 && two[1].state_confidence == 7.0f);
    return 0;
}

/* Cell (y, x) has its own direction; the picture is shifted right by `shift` cells. */
static void make_embedding(float *out, int shift) {
    memset(out, 0, sizeof(float) * GRID * GRID * CHANNELS);
    for (int y = 0; y < GRID; ++y)
        for (int x = 0; x < GRID; ++x) out[(y * GRID + x) * CHANNELS + y * GRID + (x - shift + GRID) % GRID] = 1.0f;
}

int main(void) {
    static float embedding[GRID * GRID * CHANNELS];
    static uint8_t mask[SIDE * SIDE], labels[SIDE * SIDE], ids[255];
    static float confidence[SIDE * SIDE];
    int32_t count = 0;
    vosrt_memory *memory = NULL;
    vosrt_memory_options options;
    vosrt_memory_info info;

    CHECK(vosrt_abi_version() == VOSRT_ABI_VERSION);
    CHECK(strlen(vosrt_version()) > 0);

    if (check_states()) return 1;
    memset(&options, 0, sizeof options);
    CHECK(vosrt_memory_create(&options, &memory) == VOSRT_INVALID_ARGUMENT);
    CHECK(strstr(vosrt_last_error(), "struct_size") != NULL);
    CHECK(vosrt_memory_options_init(&options) == VOSRT_INVALID_ARGUMENT);
    options.struct_size = sizeof options;
    CHECK(vosrt_memory_options_init(&options) == VOSRT_OK && options.struct_size == sizeof options && options.context == 20);
    options.height = GRID;
    options.width = -3;
    options.channels = CHANNELS;
    CHECK(vosrt_memory_create(&options, &memory) == VOSRT_INVALID_ARGUMENT);
    CHECK(strcmp(vosrt_last_error(), "width is -3; expected 1 to 65536") == 0);
    CHECK(vosrt_memory_create(NULL, &memory) == VOSRT_INVALID_ARGUMENT);
    options.width = GRID;
    options.radius = 3.0f;
    options.precision = VOSRT_PRECISION_FP32;
    CHECK(vosrt_memory_create(&options, &memory) == VOSRT_OK);

    CHECK(vosrt_memory_labels(memory, SIDE, SIDE, labels, confidence) == VOSRT_INVALID_ARGUMENT);
    CHECK(vosrt_memory_annotate(memory, mask, SIDE, SIDE, SIDE) == VOSRT_INVALID_ARGUMENT);
    make_embedding(embedding, 0);
    CHECK(vosrt_memory_push(memory, NULL) == VOSRT_INVALID_ARGUMENT);
    CHECK(vosrt_memory_push(memory, embedding) == VOSRT_OK);
    CHECK(vosrt_memory_annotate(memory, mask, SIDE, SIDE, SIDE) == VOSRT_INVALID_MASK);
    CHECK(vosrt_memory_annotate(memory, mask, SIDE, SIDE, SIDE - 1) == VOSRT_INVALID_ARGUMENT);
    for (int y = 16; y < 48; ++y) memset(mask + y * SIDE + 8, 7, 24);
    CHECK(vosrt_memory_annotate(memory, mask, SIDE, SIDE, SIDE) == VOSRT_OK);
    CHECK(vosrt_memory_object_ids(memory, ids, &count) == VOSRT_OK && count == 1 && ids[0] == 7);

    for (int shift = 1; shift <= 3; ++shift) {
        make_embedding(embedding, shift);
        CHECK(vosrt_memory_push(memory, embedding) == VOSRT_OK);
        CHECK(vosrt_memory_labels(memory, SIDE, SIDE, labels, confidence) == VOSRT_OK);
        CHECK(labels[32 * SIDE + 20 + 9 * shift] == 7);
        CHECK(labels[32 * SIDE + 2 + 9 * shift - 9] == 0);
        CHECK(confidence[32 * SIDE + 20 + 9 * shift] > 0.9f);
    }

    CHECK(vosrt_memory_remove(memory, 8) == VOSRT_INVALID_ARGUMENT);
    CHECK(vosrt_memory_remove(memory, 7) == VOSRT_OK);
    CHECK(vosrt_memory_labels(memory, SIDE, SIDE, labels, NULL) == VOSRT_OK);
    for (int i = 0; i < SIDE * SIDE; ++i) CHECK(labels[i] == 0);
    info.struct_size = sizeof info;
    CHECK(vosrt_memory_get_info(memory, &info) == VOSRT_OK);
    CHECK(info.frames == 4 && info.objects == 0 && info.references == 0 && info.bytes > 0);
    vosrt_memory_destroy(memory);
    vosrt_memory_destroy(NULL);
    return 0;
}
