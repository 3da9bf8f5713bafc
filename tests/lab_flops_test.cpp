#include "lab/flops.h"

#include <gmock/gmock.h>

namespace megadict {
namespace {

constexpr FlopMode kPaper = FlopMode::paper, kConsistent = FlopMode::consistent;

FlopShape shape(int64_t hidden, bool learns) {
  return {.hidden = hidden, .learns_dictionary = learns};
}

TEST(Flops, OneStepOfTheAutoencoder) {
  EXPECT_EQ(sae_training_flops(shape(0, false), 1, kPaper), 1392640);
  EXPECT_EQ(sae_training_flops(shape(0, true), 1, kPaper), 1785856);
  EXPECT_EQ(sae_training_flops(shape(0, false), 1, kConsistent), 1098016);
  EXPECT_EQ(sae_training_flops(shape(0, true), 1, kConsistent), 1098400);
  EXPECT_EQ(sae_inference_flops(shape(0, true)), 540672);
}

struct MlpCase {
  int64_t hidden, paper, paper_learnt, consistent, consistent_learnt, inference;
};

TEST(Flops, OneStepOfTheMlp) {
  for (const MlpCase& c : {MlpCase{32, 5488640, 5881856, 3819104, 3819488, 1884160},
                           MlpCase{256, 39665664, 40058880, 26538528, 26538912, 13123584},
                           MlpCase{1024, 156844032, 157237248, 104433696, 104434080, 51658752}}) {
    EXPECT_EQ(mlp_training_flops(shape(c.hidden, false), 1, kPaper), c.paper);
    EXPECT_EQ(mlp_training_flops(shape(c.hidden, true), 1, kPaper), c.paper_learnt);
    EXPECT_EQ(mlp_training_flops(shape(c.hidden, false), 1, kConsistent), c.consistent);
    EXPECT_EQ(mlp_training_flops(shape(c.hidden, true), 1, kConsistent), c.consistent_learnt);
    EXPECT_EQ(mlp_inference_flops(shape(c.hidden, true)), c.inference);
  }
}

TEST(Flops, OneStepOfSparseCoding) {
  EXPECT_EQ(coding_training_flops(shape(0, false), 1, kPaper), 51167232);
  EXPECT_EQ(coding_training_flops(shape(0, true), 1, kPaper), 52477952);
  EXPECT_EQ(coding_training_flops(shape(0, false), 1, kConsistent), 884736);
  EXPECT_EQ(coding_training_flops(shape(0, true), 1, kConsistent), 886016);
  EXPECT_EQ(coding_inference_flops(shape(0, false)), 278528);
  EXPECT_EQ(coding_inference_flops(shape(0, true)), 278912);
}

TEST(Flops, WholeRuns) {
  EXPECT_EQ(coding_training_flops(shape(0, true), 20000, kPaper), 1049559040000);
  EXPECT_EQ(ito_flops(shape(0, false), 10000), 7209107456);
  // At logged step t the authors charge t + 1 steps.
  EXPECT_EQ(sae_training_flops(shape(0, false), 101, kPaper) + sae_inference_flops(shape(0, false)),
            141197312);
  EXPECT_EQ(coding_training_flops(shape(0, true), 39501, kPaper), 2072931581952);
  EXPECT_EQ(mlp_training_flops(shape(256, true), 39501, kPaper), 1582365818880);
}

}  // namespace
}  // namespace megadict
