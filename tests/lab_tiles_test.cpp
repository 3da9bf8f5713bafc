#include "lab/tiles.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>

namespace megadict {
namespace {

struct Shape {
  int64_t samples, ins, outs;
};

class TileProducts : public testing::TestWithParam<Shape> {
 protected:
  TileProducts() {
    const auto [samples, ins, outs] = GetParam();
    for (int64_t i = 0; i < outs * ins; ++i) w_.push_back(std::sin(static_cast<double>(3 * i + 1)));
    for (int64_t o = 0; o < outs; ++o) bias_.push_back(std::cos(static_cast<double>(o)));
    x_ = filled(samples, ins, 0.7);
    y_ = filled(samples, outs, 1.3);
  }
  static Tiles<double> filled(int64_t samples, int64_t features, double pace) {
    Tiles<double> tiles(samples, features);
    for (int64_t i = 0; i < samples; ++i)
      for (int64_t f = 0; f < features; ++f)
        tiles.at(i, f) = std::sin(pace * static_cast<double>(i * features + f));
    return tiles;
  }
  double weight(int64_t out, int64_t in) const {
    return w_[static_cast<size_t>(out * GetParam().ins + in)];
  }
  WeightView<const double> view() const { return {w_.data(), GetParam().outs, GetParam().ins}; }

  std::vector<double> w_, bias_;
  Tiles<double> x_, y_;
};

TEST_P(TileProducts, AreThePlainSums) {
  const auto [samples, ins, outs] = GetParam();
  Tiles<double> y(samples, outs), x(samples, ins);
  multiply(view(), bias_.data(), x_, y);
  multiply_transposed(view(), y_, x);
  std::vector<double> dw(w_.size(), 0.5), db(bias_.size(), 0.25);
  add_outer(y_, x_, {dw.data(), outs, ins});
  add_sums(y_, db.data());
  for (int64_t i = 0; i < samples; ++i) {
    for (int64_t o = 0; o < outs; ++o) {
      double sum = bias_[static_cast<size_t>(o)];
      for (int64_t f = 0; f < ins; ++f) sum += weight(o, f) * x_.at(i, f);
      EXPECT_NEAR(y.at(i, o), sum, 1e-12);
    }
    for (int64_t f = 0; f < ins; ++f) {
      double sum = 0;
      for (int64_t o = 0; o < outs; ++o) sum += weight(o, f) * y_.at(i, o);
      EXPECT_NEAR(x.at(i, f), sum, 1e-12);
    }
  }
  for (int64_t o = 0; o < outs; ++o) {
    double bias = 0.25;
    for (int64_t i = 0; i < samples; ++i) bias += y_.at(i, o);
    EXPECT_NEAR(db[static_cast<size_t>(o)], bias, 1e-11);
    for (int64_t f = 0; f < ins; ++f) {
      double sum = 0.5;
      for (int64_t i = 0; i < samples; ++i) sum += y_.at(i, o) * x_.at(i, f);
      EXPECT_NEAR(dw[static_cast<size_t>(o * ins + f)], sum, 1e-11);
    }
  }
}

TEST_P(TileProducts, SinglePrecisionComesNear) {
  const auto [samples, ins, outs] = GetParam();
  std::vector<float> w(w_.begin(), w_.end());
  Tiles<float> x(samples, ins), y(samples, outs);
  std::copy(x_.values().begin(), x_.values().end(), x.values().begin());
  Tiles<double> exact(samples, outs);
  multiply(view(), nullptr, x_, exact);
  multiply({w.data(), outs, ins}, nullptr, x, y);
  for (size_t i = 0; i < y.values().size(); ++i)
    EXPECT_NEAR(y.values()[i], exact.values()[i], 1e-6 * static_cast<double>(ins));
}

INSTANTIATE_TEST_SUITE_P(Shapes, TileProducts,
                         testing::Values(Shape{16, 1, 1}, Shape{16, 8, 16}, Shape{48, 7, 13},
                                         Shape{32, 3, 5}, Shape{16, 33, 4}, Shape{0, 2, 3}));

}  // namespace
}  // namespace megadict
