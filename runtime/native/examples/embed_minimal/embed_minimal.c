/* The least that follows an object: a host's own engine (mean colours instead of a network) and a moving square. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <vosrt.h>

enum {
    HEIGHT = 64,
    WIDTH = 96,
    SIDE = 24,
    CELL = 8,
    CHANNELS = 4
};

/* Each cell's mean colour as a vector of unit length. A real engine runs its network on task->bgr here. */
static vosrt_status encode(void *user, const vosrt_encode_task *task) {
    (void)user;
    for (int cell = 0; cell < task->grid_height * task->grid_width; ++cell) {
        float *out = task->embedding + (size_t)cell * CHANNELS, square = 0.0f;
        const int top = cell / task->grid_width * CELL, left = cell % task->grid_width * CELL;
        memset(out, 0, CHANNELS * sizeof *out);
        for (int y = top; y < top + CELL && y < task->height; ++y)
            for (int x = left; x < left + CELL && x < task->width; ++x)
                for (int c = 0; c < 3; ++c) out[c] += task->bgr[((size_t)y * task->width + x) * 3 + c];
        out[3] = 1.0f; /* keeps black cells from being zero */
        for (int c = 0; c < CHANNELS; ++c) square += out[c] * out[c];
        for (int c = 0; c < CHANNELS; ++c) out[c] /= sqrtf(square);
    }
    return VOSRT_OK;
}

static uint8_t frame[HEIGHT][WIDTH][3], mask[HEIGHT][WIDTH];

static void draw(int left) {
    for (int y = 0; y < HEIGHT; ++y)
        for (int x = 0; x < WIDTH; ++x) {
            const int inside = y >= 16 && y < 16 + SIDE && x >= left && x < left + SIDE;
            mask[y][x] = inside ? 1 : 0;
            frame[y][x][0] = inside ? 20 : 120;
            frame[y][x][1] = 110;
            frame[y][x][2] = inside ? 230 : 90;
        }
}

int main(void) {
    vosrt_engine engine = {.struct_size = sizeof engine, .name = "mean colours", .encode = encode};
    vosrt_model_options options = {.struct_size = sizeof options};
    vosrt_image picture = {.struct_size = sizeof picture, .height = HEIGHT, .width = WIDTH, .data = &frame[0][0][0]};
    vosrt_image marks = {.struct_size = sizeof marks,
                         .format = VOSRT_FORMAT_GRAY,
                         .height = HEIGHT,
                         .width = WIDTH,
                         .data = &mask[0][0]};
    vosrt_result result = {.struct_size = sizeof result};
    vosrt_model *model = NULL;
    vosrt_stream *stream = NULL;
    double overlap = 1.0;
    if (vosrt_model_options_init(&options)) goto failed;
    options.channels = CHANNELS;
    if (vosrt_model_create(&options, &engine, &model) || vosrt_stream_create(model, NULL, &stream)) goto failed;
    for (int t = 0; t < 8 && overlap > 0.7; ++t) {
        int both = 0, either = 0;
        draw(8 * t);
        if (vosrt_stream_step(stream, &picture, t == 0 ? &marks : NULL, &result)) goto failed;
        for (int i = 0; i < HEIGHT * WIDTH; ++i) {
            both += result.labels[i] && (&mask[0][0])[i];
            either += result.labels[i] || (&mask[0][0])[i];
        }
        overlap = (double)both / either;
        printf("frame %d: overlap %.2f, %.2f ms\n", t, overlap, result.encode_ms + result.match_ms + result.labels_ms);
    }
    vosrt_stream_destroy(stream);
    vosrt_model_destroy(model);
    return overlap > 0.7 ? 0 : 1;
failed:
    fprintf(stderr, "%s\n", vosrt_last_error());
    return 1;
}
