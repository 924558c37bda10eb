#include "picture.hpp"

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <string>

#include "error.hpp"

namespace vosrt {
namespace {

template <int32_t kBytes, int32_t kBlue, int32_t kGreen, int32_t kRed>
void reorder(const uint8_t *in, int32_t width, uint8_t *out) {
    for (int32_t x = 0; x < width; ++x, in += kBytes, out += 3) {
        out[0] = in[kBlue];
        out[1] = in[kGreen];
        out[2] = in[kRed];
    }
}

// Limited-range luma and chroma to full-range RGB, coefficients in 1/256: nv12_to_bgr of vosrt/core/reference.py within one
// step of 255, as on a GPU (nv12_pixels).
struct Matrix {
    int32_t luma, red_v, green_u, green_v, blue_u;
};
constexpr Matrix kBt601 = {298, 409, -100, -208, 516}, kBt709 = {298, 459, -55, -136, 541};

void from_nv12(const uint8_t *luma, const uint8_t *chroma, const Matrix &matrix, int32_t width, uint8_t *out) {
    const auto clip = [](int32_t value) { return static_cast<uint8_t>(std::clamp((value + 128) >> 8, 0, 255)); };
    for (int32_t x = 0; x < width; ++x, out += 3) {
        const int32_t y = matrix.luma * (luma[x] - 16), u = chroma[x / 2 * 2] - 128, v = chroma[x / 2 * 2 + 1] - 128;
        out[0] = clip(y + matrix.blue_u * u);
        out[1] = clip(y + matrix.green_u * u + matrix.green_v * v);
        out[2] = clip(y + matrix.red_v * v);
    }
}

// By vosrt_pixel_format: bytes of a pixel, what makes a row BGR (nothing where it is that), the matrix of NV12.
struct Format {
    int32_t bytes;
    void (*to_bgr)(const uint8_t *in, int32_t width, uint8_t *out) = nullptr;
    const Matrix *nv12 = nullptr;
};
constexpr Format kFormats[] = {
    {3},                       // BGR
    {3, reorder<3, 2, 1, 0>},  // RGB
    {4, reorder<4, 0, 1, 2>},  // BGRA
    {4, reorder<4, 2, 1, 0>},  // RGBA
    {1, reorder<1, 0, 0, 0>},  // GRAY
    {1, nullptr, &kBt601},     // NV12
    {1, nullptr, &kBt709},     // NV12_709
};

int64_t checked_stride(int64_t given, int64_t row, const std::string &name) {
    if (given == 0) return row;
    if ((given < row && given > -row) || given > kMaxStride || given < -kMaxStride)
        invalid(name + " is " + std::to_string(given) + " bytes; expected 0 or at least " + std::to_string(row) +
                " either way, and at most " + std::to_string(kMaxStride));
    return given;
}

}  // namespace

Picture to_picture(const vosrt_image &image, const char *name) {
    const std::string prefix = std::string(name) + ".";
    within(image.format, 0, static_cast<int32_t>(std::size(kFormats)) - 1, (prefix + "format").c_str());
    within(image.height, 1, kMaxSide, (prefix + "height").c_str());
    within(image.width, 1, kMaxSide, (prefix + "width").c_str());
    if (image.data == nullptr) invalid(prefix + "data is NULL");
    Picture out{static_cast<vosrt_pixel_format>(image.format), image.height, image.width, image.data, 0, nullptr, 0};
    const int64_t row = static_cast<int64_t>(image.width) * kFormats[out.format].bytes;
    out.stride = checked_stride(image.stride, row, prefix + "stride");
    if (kFormats[out.format].nv12 == nullptr) return out;
    const int64_t chroma_row = (static_cast<int64_t>(image.width) + 1) / 2 * 2;
    out.chroma = image.chroma != nullptr ? image.chroma : image.data + out.stride * image.height;
    if (image.chroma == nullptr && out.stride < 0) invalid(prefix + "chroma is NULL; expected a pointer with a negative stride");
    const int64_t stride = image.chroma_stride == 0 && image.stride != 0 ? image.stride : image.chroma_stride;
    out.chroma_stride = checked_stride(stride, chroma_row, prefix + "chroma_stride");
    return out;
}

const uint8_t *bgr_row(const Picture &picture, int32_t y, uint8_t *scratch) {
    const uint8_t *row = picture.data + y * picture.stride;
    const Format &format = kFormats[picture.format];
    if (format.nv12 != nullptr)
        from_nv12(row, picture.chroma + y / 2 * picture.chroma_stride, *format.nv12, picture.width, scratch);
    else if (format.to_bgr != nullptr)
        format.to_bgr(row, picture.width, scratch);
    else
        return row;
    return scratch;
}

std::array<bool, 256> ids_in(const Picture &mask) {
    std::array<bool, 256> present{};
    for (int32_t y = 0; y < mask.height; ++y)
        for (int32_t x = 0; x < mask.width; ++x) present[mask.data[y * mask.stride + x]] = true;
    return present;
}

bool is_dense_bgr(const Picture &picture) {
    return picture.format == VOSRT_FORMAT_BGR && picture.stride == int64_t{3} * picture.width;
}

}  // namespace vosrt
