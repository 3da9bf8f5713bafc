#include "io/json_lines.h"

#include <gmock/gmock.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "io/file.h"
#include "io/json_file.h"
#include "support/temp_folder.h"

namespace megadict {
namespace {

using test::error_of;
using test::TempFolder;
using testing::HasSubstr;

TEST(JsonLines, AppendsWholeLinesInOrderOfKeys) {
  const TempFolder folder;
  {
    JsonLines lines(folder / "m.jsonl");
    lines.append({{"step", 1}, {"fvu", 0.5}});
    EXPECT_EQ(read_file(folder / "m.jsonl"), "{\"step\":1,\"fvu\":0.5}\n");
  }
  JsonLines lines(folder / "m.jsonl");
  lines.append({{"step", 2}, {"fvu", std::nan("")}});
  EXPECT_EQ(read_file(folder / "m.jsonl"), "{\"step\":1,\"fvu\":0.5}\n{\"step\":2,\"fvu\":null}\n");
}

TEST(JsonLines, RemovesALineThatACrashCutShort) {
  const TempFolder folder;
  write_file_atomic(folder / "m.jsonl", "{\"step\":1}\n{\"ste");
  EXPECT_EQ(read_json_lines(folder / "m.jsonl").size(), 1u);
  JsonLines lines(folder / "m.jsonl");
  lines.append({{"step", 2}});
  EXPECT_EQ(read_file(folder / "m.jsonl"), "{\"step\":1}\n{\"step\":2}\n");
}

TEST(JsonLines, FilterKeepsWhatIsAccepted) {
  const TempFolder folder;
  write_file_atomic(folder / "m.jsonl", "{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n");
  filter_json_lines(folder / "m.jsonl", [](const auto& line) { return line["step"] <= 2; });
  EXPECT_EQ(read_file(folder / "m.jsonl"), "{\"step\":1}\n{\"step\":2}\n");
}

TEST(JsonLines, NamesTheBadLine) {
  const TempFolder folder;
  write_file_atomic(folder / "m.jsonl", "{\"step\":1}\n[]\n");
  const Error error = error_of([&] { read_json_lines(folder / "m.jsonl"); });
  EXPECT_EQ(error.code(), ExitCode::bad_data);
  EXPECT_THAT(error.line(), HasSubstr("line 2"));
}

TEST(JsonFile, RoundTripsAndRefusesWhatIsNotJson) {
  const TempFolder folder;
  write_json(folder / "a.json", nlohmann::ordered_json{{"z", 1}, {"a", {1, 2}}});
  EXPECT_EQ(read_json(folder / "a.json")["a"][1], 2);
  EXPECT_LT(read_file(folder / "a.json").find("\"z\""), read_file(folder / "a.json").find("\"a\""));
  write_file_atomic(folder / "b.json", "{\"a\":");
  const Error error = error_of([&] { read_json(folder / "b.json"); });
  EXPECT_EQ(error.code(), ExitCode::bad_data);
  EXPECT_THAT(error.line(), HasSubstr("b.json': not JSON at byte"));
}

TEST(JsonFile, CountsBracketsOutsideOfText) {
  const std::string open(64, '['), close(64, ']'), many(1000, '{');
  EXPECT_FALSE(nests_too_deep(open + close + open + close));
  EXPECT_TRUE(nests_too_deep(open + "{}" + close));
  EXPECT_FALSE(nests_too_deep("{\"a\": \"" + many + "\\\"" + many + "\"}"));
  const TempFolder folder;
  write_file_atomic(folder / "a.json", open + open + close + close);
  write_file_atomic(folder / "b.json", "[1e999]");
  EXPECT_THAT(error_of([&] { read_json(folder / "a.json"); }).line(), HasSubstr("64 brackets"));
  EXPECT_THAT(error_of([&] { read_json(folder / "b.json"); }).line(), HasSubstr("fits no double"));
}

}  // namespace
}  // namespace megadict
