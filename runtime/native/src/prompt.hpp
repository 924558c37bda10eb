// From clicks and a box to a mask of one frame, without a network that was trained for it.
//
// Cells of the encoder's grid are nodes of a graph whose edges are strong where neighbours look alike, to the network and in colour. Each
// click selects a region of that graph: a random walk starts at the click, and of its level sets the one that is cut off best is taken (the
// sweep of Andersen, Chung and Lang 2006, "Local graph partitioning using PageRank vectors"). People click in the middle of what is wrong: what
// a later click changes is thus no wider than twice its distance to what it may not change, and its area is bounded by that. A linear classifier then learns what the mask
// looks like, and a random walk with priors (Grady 2005, "Multilabel random walker image segmentation using prior models") on a grid of half
// the cell size decides between the classifier, the mask and the clicks. At last a guided filter (He et al. 2013, section 3.3) has the
// outline follow the edges of the picture. The constants were chosen on DAVIS sequences: benchmarks/accuracy/clicks.py.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "guided.hpp"
#include "picture.hpp"
#include "thread_pool.hpp"
#include "vosrt.h"

namespace vosrt {

struct Click {
    float x, y;  // pixels of the frame
    bool positive;
    bool operator==(const Click &) const = default;
};

using Box = std::array<float, 4>;  // x, y, width, height in pixels
using Plane = std::vector<float>;  // one value a cell or pixel
using Bits = std::vector<uint8_t>;

vosrt_prompt_options default_prompt_options();

// A graph of cells, each joined to its eight neighbours.
class CellGraph {
   public:
    // `features` f32 [h * w][channels], `colours` f32 [h * w][3]; the rest as in vosrt_prompt_options.
    CellGraph(int32_t height, int32_t width, int32_t channels, Plane features, const Plane &colours, float feature_edges, float colour_edges,
              float floor);

    int32_t cells() const { return height * width; }
    // Solves (L + diag(weights)) x = pulls by conjugate gradients, where L is the Laplacian: each cell is pulled towards pulls / weights.
    // `start` is a guess of x; it ends where x changes by less than `tolerance`, or after `rounds`. With `inside`, only edges between cells of it.
    Plane walk(const Plane &weights, const Plane &pulls, Plane start, int32_t rounds, float tolerance, const Bits *inside = nullptr) const;

    const int32_t height, width, channels, inputs;  // inputs: of `looks`
    Plane features, looks, places;                  // [cells][channels], [cells][channels + 6], [cells][2]
    float mean_degree = 0.0f;
    // Weights to the neighbours right, below, below right and below left, 0 where there is none; with `pad` zeros at both ends.
    std::array<Plane, 4> edges;
    const int32_t pad;
    std::array<int32_t, 4> steps() const { return {1, width, width + 1, width - 1}; }
};

// A frame that was encoded, ready for clicks.
class Prompt {
   public:
    Prompt(const vosrt_embedding &frame, int32_t cell, const vosrt_prompt_options &options);

    // Writes the object that is clicked as 0 and 1 to `out`, u8 [H, W]. Each click corrects what those before it gave; the box is around the
    // object; `mask` is what the clicks correct, not 0 for the object. Throws Error.
    void segment(std::span<const Click> clicks, const std::optional<Box> &box, const Picture *mask, uint8_t *out);

   private:
    // Between two clicks, on the fine grid.
    struct State {
        Plane soft;    // the mask, 0 to 1
        Plane score;   // of the classifier, above 0 for the object
        Bits allowed;  // where the object may be; empty is everywhere
    };
    using Clicks = std::span<const Click>;

    State begin() const;
    State click(const State &state, Clicks clicks) const;
    State refit(const State &state, Clicks clicks) const;
    Plane classify(const Plane &soft, Clicks clicks) const;
    Plane stands_out(const Bits &allowed) const;
    Bits inside(const Box &box) const;
    float depth(const Plane &soft, const Click &click) const;
    Bits region(const Bits &spot, const Bits &domain, const Bits &against, const Plane &stops, float limit, float balance) const;
    float loose_part(const Bits &mask, const Bits &spot, Clicks clicks) const;
    Plane halved(const Plane &fine) const;
    std::array<int32_t, 2> at(const Click &click) const;  // row and column on the fine grid
    Bits coarse_spot(const Click &click) const;
    Plane follow_edges(const Plane &soft);
    void finish(const State &state, Clicks clicks, uint8_t *out);

    const vosrt_prompt_options options_;
    const int32_t height_, width_;  // of the frame
    CellGraph cells_, fine_;
    double scale_x_, scale_y_;  // the padded working frame by the one that is seen
    Guide guide_;
    ThreadPool pool_{1};  // of the caller's thread alone
    // What is corrected, and the newest clicks with the state after each, so that the next click is one step.
    std::optional<Box> box_;
    Bits mask_;
    std::vector<Click> clicks_;
    std::vector<State> states_;  // one more than clicks
};

}  // namespace vosrt
