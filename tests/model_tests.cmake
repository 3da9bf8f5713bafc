megadict_test(model_folding_test SOURCES model_folding_test.cpp ROOMS model LABELS model TORCH)
megadict_test(model_formats_test SOURCES model_formats_test.cpp ROOMS model LABELS model TORCH)
megadict_test(model_hidden_test SOURCES model_hidden_test.cpp ROOMS model LABELS model TORCH)
megadict_test(model_matryoshka_test SOURCES model_matryoshka_test.cpp ROOMS model LABELS model TORCH)
megadict_test(model_foreign_files_test SOURCES model_foreign_files_test.cpp ROOMS model LABELS model TORCH)

# Dictionaries for tests/py/test_export.py.
add_executable(export_fixture support/export_fixture.cpp)
target_include_directories(export_fixture PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
target_link_libraries(export_fixture PRIVATE megadict_model megadict_flags)
megadict_torch_pch(export_fixture)

megadict_test(model_topk_test SOURCES model_topk_test.cpp ROOMS model
  RANKS 1 2 3 4 6 LABELS model TORCH)
megadict_test(model_batch_topk_test SOURCES model_batch_topk_test.cpp ROOMS model
  RANKS 1 2 3 4 6 LABELS model TORCH)
