// vosrt_read_values against its formula in double precision, and what it refuses.
#include <algorithm>
#include <cstring>

#include "check.hpp"

namespace {

struct Shape {
    int queries, top_k, objects, slots, cells, channels;
    float missing;  // share of the neighbours
};

struct Problem {
    std::vector<float> similarity;
    std::vector<int32_t> slot, cell;
    std::vector<std::vector<float>> values;
    std::vector<const float *> pointers;
    std::vector<float> out;
    vosrt_values_task task{};

    explicit Problem(const Shape &shape) {
        std::mt19937 random(3);
        std::uniform_real_distribution<float> share;
        std::normal_distribution<float> normal;
        for (int i = 0; i < shape.queries * shape.top_k; ++i) {
            const bool missing = share(random) < shape.missing;
            similarity.push_back(missing ? NAN : share(random));
            slot.push_back(missing ? -1 : static_cast<int32_t>(random() % shape.slots));
            cell.push_back(missing ? -1 : static_cast<int32_t>(random() % shape.cells));
        }
        values.resize(shape.objects);
        for (auto &each : values)
            for (int i = 0; i < shape.slots * shape.cells * shape.channels; ++i) each.push_back(normal(random));
        for (const auto &each : values) pointers.push_back(each.data());
        out.assign(static_cast<size_t>(shape.objects) * shape.queries * shape.channels, NAN);
        task.struct_size = sizeof task;
        task.queries = shape.queries;
        task.top_k = shape.top_k;
        task.temperature = 0.05f;
        task.objects = shape.objects;
        task.slots = shape.slots;
        task.cells = shape.cells;
        task.channels = shape.channels;
        task.similarity = similarity.data();
        task.slot = slot.data();
        task.cell = cell.data();
        task.values = pointers.data();
        task.out = out.data();
    }

    std::vector<float> read(int threads) {
        task.threads = threads;
        std::fill(out.begin(), out.end(), NAN);
        CHECK(vosrt_read_values(&task) == VOSRT_OK);
        return out;
    }

    double expected(int object, int query, int channel) const {
        double sum = 0, total = 0;
        for (int i = query * task.top_k; i < (query + 1) * task.top_k; ++i) {
            if (slot[i] < 0) continue;
            const double weight = std::exp(static_cast<double>(similarity[i] / 0.05f));
            sum += weight * values[object][(static_cast<size_t>(slot[i]) * task.cells + cell[i]) * task.channels + channel];
            total += weight;
        }
        return total > 0 ? sum / total : 0;
    }

    void refuse(const char *words) const {
        CHECK(vosrt_read_values(&task) == VOSRT_INVALID_ARGUMENT);
        CHECK(std::strstr(vosrt_last_error(), words) != nullptr);
    }
};

void check_shape(const Shape &shape) {
    Problem problem(shape);
    const auto read = problem.read(1);
    for (int object = 0, at = 0; object < shape.objects; ++object)
        for (int query = 0; query < shape.queries; ++query)
            for (int channel = 0; channel < shape.channels; ++channel, ++at)
                CHECK(std::fabs(read[at] - problem.expected(object, query, channel)) < 1e-5);
    CHECK(problem.read(3) == read);
    CHECK(problem.read(0) == read);
}

void check_misuse() {
    const Shape shape{5, 2, 2, 3, 4, 6, 0};
    CHECK(vosrt_read_values(nullptr) == VOSRT_INVALID_ARGUMENT);
    Problem problem(shape);
    problem.slot[3] = 3;
    problem.refuse("slot is 3; expected -1 to 2");
    problem.slot[3] = -2;
    problem.refuse("slot is -2");
    problem.slot[3] = 0;
    problem.cell[3] = 4;
    problem.refuse("cell is 4; expected 0 to 3");
    problem.cell[3] = -1;
    problem.refuse("cell is -1");
    CHECK(std::all_of(problem.out.begin(), problem.out.end(), [](float value) { return std::isnan(value); }));
    problem.cell[3] = 0;
    problem.pointers[1] = nullptr;
    problem.refuse("values[1] is NULL");
    problem.task.values = nullptr;
    problem.refuse("values is NULL");
    problem.task.temperature = 1e-5f;
    problem.task.values = problem.pointers.data();
    problem.refuse("temperature is");
    problem.task.top_k = 65;
    problem.refuse("top_k is 65; expected 1 to 64");
}

}  // namespace

int main() {
    for (const Shape &shape : {Shape{1, 1, 1, 1, 1, 1, 0}, Shape{37, 10, 1, 6, 37, 128, 0.3f}, Shape{19, 1, 3, 2, 7, 5, 0.5f},
                               Shape{1300, 4, 2, 3, 50, 33, 0.2f}, Shape{40, 64, 2, 4, 40, 17, 1}})
        check_shape(shape);
    check_misuse();
    return 0;
}
