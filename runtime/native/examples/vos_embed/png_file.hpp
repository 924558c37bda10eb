// Frames and masks as PNG files, through libpng.
#pragma once

#include <png.h>

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

struct Pixels {
    int32_t height = 0, width = 0;
    std::vector<uint8_t> data;
};

// A frame as u8 [H, W, 3] BGR.
inline Pixels read_bgr(const std::filesystem::path &path) {
    png_image image{};
    image.version = PNG_IMAGE_VERSION;
    if (!png_image_begin_read_from_file(&image, path.c_str()))
        throw std::runtime_error(path.string() + ": " + image.message);
    image.format = PNG_FORMAT_BGR;
    Pixels out{static_cast<int32_t>(image.height), static_cast<int32_t>(image.width), {}};
    out.data.resize(PNG_IMAGE_SIZE(image));
    const png_color black{};
    if (!png_image_finish_read(&image, &black, out.data.data(), 0, nullptr))
        throw std::runtime_error(path.string() + ": " + image.message);
    return out;
}

// A mask as u8 [H, W]: the indices of a palette file (as DAVIS has them), or the values of a greyscale one.
inline Pixels read_mask(const std::filesystem::path &path) {
    const std::unique_ptr<FILE, int (*)(FILE *)> file(std::fopen(path.c_str(), "rb"), std::fclose);
    if (!file) throw std::runtime_error(path.string() + " cannot be opened");
    const auto fail = [](png_structp png, png_const_charp text) {
        throw std::runtime_error(*static_cast<std::string *>(png_get_error_ptr(png)) + ": " + text);
    };
    std::string name = path.string();
    struct Reader {
        png_structp png;
        png_infop info;
        ~Reader() { png_destroy_read_struct(&png, &info, nullptr); }
    } reader{png_create_read_struct(PNG_LIBPNG_VER_STRING, &name, fail, nullptr), nullptr};
    reader.info = png_create_info_struct(reader.png);
    png_init_io(reader.png, file.get());
    png_read_png(reader.png, reader.info, PNG_TRANSFORM_PACKING | PNG_TRANSFORM_STRIP_16, nullptr);
    if (png_get_channels(reader.png, reader.info) != 1)
        throw std::runtime_error(name + " is a colour picture; a mask has a palette or is greyscale");
    Pixels out{static_cast<int32_t>(png_get_image_height(reader.png, reader.info)),
               static_cast<int32_t>(png_get_image_width(reader.png, reader.info)),
               {}};
    for (png_bytepp row = png_get_rows(reader.png, reader.info), end = row + out.height; row != end; ++row)
        out.data.insert(out.data.end(), *row, *row + out.width);
    return out;
}

// Labels as a palette PNG in the colours of PASCAL VOC and DAVIS.
inline void write_labels(const std::filesystem::path &path, const uint8_t *labels, int32_t height, int32_t width) {
    uint8_t palette[256][3] = {};
    for (int id = 0; id < 256; ++id)
        for (int bit = 0; bit < 8; ++bit)
            for (int c = 0; c < 3; ++c) palette[id][c] |= static_cast<uint8_t>((id >> (3 * bit + c) & 1) << (7 - bit));
    png_image image{};
    image.version = PNG_IMAGE_VERSION;
    image.width = static_cast<png_uint_32>(width);
    image.height = static_cast<png_uint_32>(height);
    image.format = PNG_FORMAT_RGB_COLORMAP;
    image.colormap_entries = 256;
    if (!png_image_write_to_file(&image, path.c_str(), 0, labels, 0, palette))
        throw std::runtime_error(path.string() + ": " + image.message);
}
