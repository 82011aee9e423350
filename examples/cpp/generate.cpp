// Greedy generation with a t5edge bundle on ONNX Runtime's C++ API: ids in, ids out, one sentence per line.
//
//     generate BUNDLE [--batch N] [--threads N] [--max-new-tokens N] [--stats] < sources > answers
//
// The encoder runs once per batch. The decoder is decoder_buffered.onnx where the bundle has it: its cache lies in
// buffers that are input and output at one address, so that nothing is bound, allocated or copied between two tokens.
// Otherwise it is decoder.onnx, whose cache grows by concatenation. See docs/bundle-format.md.

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace fs = std::filesystem;
using json = nlohmann::json;
using Ids = std::vector<int64_t>;

const std::string BUFFERED = "decoder_buffered", GROWING = "decoder";
constexpr int64_t FORMAT_VERSION = 1, DEFAULT_NEW_TOKENS = 20, FIRST_CAPACITY = 64;
constexpr int SINCE = 27;  // ONNX Runtime 1.27: older ones compute quantized and buffered graphs wrongly or not at all

// Settings of generation_config.json that change a greedy answer and do not exist here, with the values that are none.
const json NEUTRAL = json::parse(R"({
  "num_beams": [1], "do_sample": [false], "num_return_sequences": [1], "repetition_penalty": [1.0],
  "encoder_repetition_penalty": [1.0], "no_repeat_ngram_size": [0], "encoder_no_repeat_ngram_size": [0],
  "min_length": [0], "min_new_tokens": [0], "forced_bos_token_id": [], "forced_eos_token_id": [],
  "bad_words_ids": [], "suppress_tokens": [], "begin_suppress_tokens": [], "sequence_bias": [],
  "exponential_decay_length_penalty": [], "guidance_scale": [1.0], "penalty_alpha": [], "stop_strings": []
})");

struct Arguments {
    fs::path bundle;
    int64_t batch = 16, threads = 0, max_new_tokens = 0;
    bool stats = false;
};

// ---------------------------------------------------------------------------------------------- the manifest

// An entry of an object; null where it is absent.
json entry(const json& object, const std::string& name) {
    const auto found = object.find(name);
    return found == object.end() ? json() : *found;
}

json read_manifest(const fs::path& bundle) {
    std::ifstream file(bundle / "bundle.json");
    if (!file) throw std::runtime_error("'" + bundle.string() + "' has no bundle.json");
    json manifest = json::parse(file);
    if (manifest.value("format", "") != "t5edge-bundle") throw std::runtime_error("bundle.json is not t5edge's");
    if (manifest.at("format_version").get<int64_t>() > FORMAT_VERSION)
        throw std::runtime_error("the bundle has a later format than this program knows");
    if (manifest.value("task", "generate") != "generate")
        throw std::runtime_error("the bundle is an encoder alone: there is nothing to generate");
    if (manifest.at("precision").at("compute") != "float")
        throw std::runtime_error("the bundle computes in 16 bits; export it in fp32, int8, int8-weight or int4-weight");
    return manifest;
}

// The decoder that this ONNX Runtime runs best.
std::string choose_decoder(const json& manifest) {
    int major = 0, minor = 0;
    std::sscanf(OrtGetApiBase()->GetVersionString(), "%d.%d", &major, &minor);
    const bool recent = major > 1 || minor >= SINCE;
    if (!recent && manifest.at("precision").value("weight_bits", 0) > 0)
        throw std::runtime_error("quantized bundles need ONNX Runtime 1." + std::to_string(SINCE));
    return recent && manifest.at("ports").contains(BUFFERED) ? BUFFERED : GROWING;
}

// A file that is missing or of another size is not what was exported. (Its sha256 is in the manifest too.)
void check_files(const fs::path& bundle, const json& manifest, const std::string& decoder) {
    for (const std::string& name : std::vector<std::string>{"encoder.onnx", decoder + ".onnx", "weights.safetensors"}) {
        const fs::path path = bundle / name;
        if (!fs::is_regular_file(path) || fs::file_size(path) != manifest.at("files").at(name).at("bytes"))
            throw std::runtime_error("'" + path.string() + "' is missing or not what was exported");
    }
}

// An input of the decoder that this program does not know belongs to something that it cannot do.
void check_inputs(const json& manifest, const std::string& decoder) {
    for (const json& port : manifest.at("ports").at(decoder).at("inputs")) {
        const std::string name = port.at("name");
        const bool known = name == "input_ids" || name == "encoder_attention_mask" || name == "past_length";
        if (!known && name.rfind("past_key_values.", 0) != 0)
            throw std::runtime_error("the decoder's input " + name + " is unknown to this program");
    }
}

struct Settings {
    int64_t start, pad, max_new_tokens;
    std::set<int64_t> eos;
};

// The bundle's own settings, as transformers reads them.
Settings read_settings(const json& manifest, int64_t max_new_tokens) {
    const json &given = manifest.at("generation"), &sizes = manifest.at("architecture");
    for (const auto& [name, neutral] : NEUTRAL.items()) {
        const json value = entry(given, name);
        if (!value.is_null() && std::find(neutral.begin(), neutral.end(), value) == neutral.end())
            throw std::runtime_error("the bundle generates with " + name + " " + value.dump() +
                                     ", which this program does not have");
    }
    const auto setting = [&](const char* name) {
        const json value = entry(given, name);
        return value.is_null() ? entry(sizes, name) : value;
    };
    const json eos = setting("eos_token_id"), length = entry(given, "max_length");
    Settings settings{setting("decoder_start_token_id"), setting("pad_token_id"), max_new_tokens, {}};
    if (eos.is_array()) settings.eos = eos.get<std::set<int64_t>>();
    else settings.eos = {eos.get<int64_t>()};
    const json own = entry(given, "max_new_tokens");
    if (settings.max_new_tokens == 0 && !own.is_null()) settings.max_new_tokens = own;
    if (settings.max_new_tokens == 0 && !length.is_null()) settings.max_new_tokens = length.get<int64_t>() - 1;
    if (settings.max_new_tokens == 0) settings.max_new_tokens = DEFAULT_NEW_TOKENS;
    return settings;
}

// ---------------------------------------------------------------------------------------------- sessions

// x86 without VNNI adds products of int8 activations in 16 bits, which saturate, unless weights are made unsigned.
bool saturates() {
#if defined(__GNUC__) && defined(__x86_64__)
    return !__builtin_cpu_supports("avx512vnni") && !__builtin_cpu_supports("avxvnni");
#else
    return false;
#endif
}

Ort::Session open_graph(const Ort::Env& env, const Arguments& arguments, const json& manifest,
                        const std::string& graph) {
    const std::string role = graph == "encoder" ? "encoder" : "decoder";
    Ort::SessionOptions options;
    options.SetLogSeverityLevel(3);
    if (arguments.threads > 0) options.SetIntraOpNumThreads(static_cast<int>(arguments.threads));
    const json session = entry(manifest, "session"), entries = session.is_null() ? json() : entry(session, role);
    for (const auto& [key, value] : entries.items())
        options.AddConfigEntry(key.c_str(), value.get<std::string>().c_str());
    const json rounded = manifest.at("precision").value("activations", json::array());
    if (std::find(rounded.begin(), rounded.end(), role) != rounded.end() && saturates())
        options.AddConfigEntry("session.x64quantprecision", "1");
    return Ort::Session(env, (arguments.bundle / (graph + ".onnx")).c_str(), options);
}

const Ort::MemoryInfo& cpu() {
    static const auto info = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    return info;
}

template <typename T>
Ort::Value tensor(std::vector<T>& memory, const std::vector<int64_t>& shape) {
    return Ort::Value::CreateTensor<T>(cpu(), memory.data(), memory.size(), shape.data(), shape.size());
}

// ---------------------------------------------------------------------------------------------- one batch

// A batch of sources: the encoder's outputs and the decoder's cache, as its inputs.
class Batch {
  public:
    Batch(Ort::Session& encoder, Ort::Session& decoder, const json& manifest, const std::string& graph,
          const std::vector<Ids>& sources)
        : decoder_(decoder), binding_(decoder), rows_(static_cast<int64_t>(sources.size())) {
        const json& sizes = manifest.at("architecture");
        heads_ = sizes.at("num_heads"), d_kv_ = sizes.at("d_kv"), vocab_ = sizes.at("vocab_size");
        encode(encoder, manifest, sources, sizes.value("pad_token_id", int64_t{0}));
        tokens_.resize(rows_), logits_.resize(rows_ * vocab_);
        for (const json& port : manifest.at("ports").at(graph).at("inputs")) {
            const std::string name = port.at("name");
            const json& axes = port.at("axes");
            if (name == "past_length") lengths_.assign(axes[0].is_number() ? 1 : rows_, 0);
            if (name.find(".decoder.") == std::string::npos) continue;
            if (axes[2].is_number()) fixed_ = axes[2];
            caches_[name];
        }
        binding_.BindInput("input_ids", tensor(tokens_, {rows_, 1}));
        binding_.BindOutput("logits", tensor(logits_, {rows_, 1, vocab_}));
        if (lengths_.empty()) {  // the cache grows by itself: of no positions at first
            reserve(0);
            leave_outputs();
            return;
        }
        binding_.BindInput("past_length", tensor(lengths_, {static_cast<int64_t>(lengths_.size())}));
        reserve(fixed_ > 0 ? fixed_ : FIRST_CAPACITY);
    }

    // Feed one token per row; the best next token of each.
    Ids step(const Ids& tokens) {
        const bool grows = lengths_.empty();
        if (!grows && lengths_[0] == capacity_) reserve(capacity_ + capacity_ / 2);
        std::copy(tokens.begin(), tokens.end(), tokens_.begin());
        decoder_.Run(Ort::RunOptions{nullptr}, binding_);
        for (int64_t& length : lengths_) ++length;
        if (grows) feed_back();
        Ids best(rows_);
        for (int64_t row = 0; row < rows_; ++row) {
            const auto first = logits_.begin() + row * vocab_;
            const auto largest = std::max_element(first, first + vocab_);
            if (!std::isfinite(*largest)) throw std::runtime_error("the logits are not finite");
            best[row] = largest - first;
        }
        return best;
    }

  private:
    // Pad on the right, run the encoder, bind mask, cross keys and values.
    void encode(Ort::Session& encoder, const json& manifest, const std::vector<Ids>& sources, int64_t pad) {
        size_t longest = 0;
        for (const Ids& source : sources) longest = std::max(longest, source.size());
        Ids ids(rows_ * longest, pad);
        mask_.assign(rows_ * longest, 0);
        for (size_t row = 0; row < sources.size(); ++row) {
            std::copy(sources[row].begin(), sources[row].end(), ids.begin() + row * longest);
            std::fill_n(mask_.begin() + row * longest, sources[row].size(), 1);
        }
        const std::vector<int64_t> shape{rows_, static_cast<int64_t>(longest)};
        std::vector<std::string> names;
        for (const json& port : manifest.at("ports").at("encoder").at("outputs")) {
            const std::string name = port.at("name");
            if (name.rfind("present.", 0) == 0) names.push_back(name);
        }
        std::vector<const char*> wanted;
        for (const std::string& name : names) wanted.push_back(name.c_str());
        const char* inputs[] = {"input_ids", "attention_mask"};
        const Ort::Value values[] = {tensor(ids, shape), tensor(mask_, shape)};
        cross_ = encoder.Run(Ort::RunOptions{nullptr}, inputs, values, 2, wanted.data(), wanted.size());
        binding_.BindInput("encoder_attention_mask", tensor(mask_, shape));
        for (size_t index = 0; index < names.size(); ++index)
            binding_.BindInput(("past_key_values" + names[index].substr(7)).c_str(), cross_[index]);
    }

    // Buffers for `capacity` positions, with what was in the smaller ones, as input and output at one address.
    void reserve(int64_t capacity) {
        if (fixed_ > 0 && capacity > fixed_) throw std::runtime_error("the answer is longer than the cache");
        for (auto& [name, cache] : caches_) {
            std::vector<float> wider(rows_ * heads_ * capacity * d_kv_);
            for (int64_t head = 0; head < rows_ * heads_; ++head)
                std::copy_n(cache.begin() + head * capacity_ * d_kv_, capacity_ * d_kv_,
                            wider.begin() + head * capacity * d_kv_);
            cache = std::move(wider);
            const Ort::Value value = tensor(cache, {rows_, heads_, capacity, d_kv_});
            binding_.BindInput(name.c_str(), value);
            binding_.BindOutput(("present" + name.substr(15)).c_str(), value);
        }
        capacity_ = capacity;
    }

    // The outputs of this pass are the inputs of the next one.
    void feed_back() {
        const std::vector<std::string> names = binding_.GetOutputNames();
        const std::vector<Ort::Value> values = binding_.GetOutputValues();
        for (size_t index = 0; index < names.size(); ++index)
            if (names[index] != "logits")
                binding_.BindInput(("past_key_values" + names[index].substr(7)).c_str(), values[index]);
        leave_outputs();
    }

    // Present keys and values of the next pass go wherever ONNX Runtime puts them.
    void leave_outputs() {
        for (const auto& [name, cache] : caches_) binding_.BindOutput(("present" + name.substr(15)).c_str(), cpu());
    }

    Ort::Session& decoder_;
    Ort::IoBinding binding_;
    int64_t rows_, heads_ = 0, d_kv_ = 0, vocab_ = 0, capacity_ = 0, fixed_ = 0;
    Ids mask_, tokens_, lengths_;
    std::vector<float> logits_;
    std::vector<Ort::Value> cross_;
    std::map<std::string, std::vector<float>> caches_;
};

// The answer to each source: ids behind the start token, the end token included where one was reached.
std::vector<Ids> generate(Batch& batch, size_t rows, const Settings& settings) {
    std::vector<Ids> answers(rows);
    std::vector<bool> ended(rows, false);
    Ids newest(rows, settings.start);
    size_t running = rows;
    for (int64_t step = 0; step < settings.max_new_tokens && running > 0; ++step) {
        newest = batch.step(newest);
        for (size_t row = 0; row < rows; ++row) {
            if (ended[row]) {
                newest[row] = settings.pad;
                continue;
            }
            answers[row].push_back(newest[row]);
            ended[row] = settings.eos.count(newest[row]) > 0;
            running -= ended[row];
        }
    }
    return answers;
}

// ---------------------------------------------------------------------------------------------- the program

std::vector<Ids> read_sources(std::istream& in, const json& manifest) {
    const json& sizes = manifest.at("architecture");
    const int64_t most = sizes.at("vocab_size").get<int64_t>() + sizes.value("virtual_tokens", int64_t{0});
    std::vector<Ids> sources;
    for (std::string line; std::getline(in, line);) {
        std::istringstream words(line);
        Ids ids;
        for (int64_t id; words >> id;) ids.push_back(id);
        const bool inside = std::all_of(ids.begin(), ids.end(), [&](int64_t id) { return 0 <= id && id < most; });
        if (!words.eof() || ids.empty() || !inside)
            throw std::runtime_error("line " + std::to_string(sources.size() + 1) + " is no list of ids from 0 to " +
                                     std::to_string(most - 1) + ": '" + line.substr(0, 60) + "'");
        sources.push_back(ids);
    }
    return sources;
}

Arguments parse(int count, char** words) {
    const std::string usage = "usage: generate BUNDLE [--batch N] [--threads N] [--max-new-tokens N] [--stats]";
    Arguments arguments;
    const std::map<std::string, int64_t*> numbers{{"--batch", &arguments.batch},
                                                  {"--threads", &arguments.threads},
                                                  {"--max-new-tokens", &arguments.max_new_tokens}};
    for (int index = 1; index < count; ++index) {
        const std::string word = words[index];
        const auto number = numbers.find(word);
        if (number != numbers.end() && index + 1 < count) {
            *number->second = std::atoll(words[++index]);
            if (*number->second < 1) throw std::runtime_error(word + " takes a number from 1 on");
        } else if (word == "--stats") arguments.stats = true;
        else if (word[0] != '-' && arguments.bundle.empty()) arguments.bundle = word;
        else throw std::runtime_error(usage);
    }
    if (arguments.bundle.empty()) throw std::runtime_error(usage);
    return arguments;
}

void run(const Arguments& arguments) {
    const json manifest = read_manifest(arguments.bundle);
    const std::string graph = choose_decoder(manifest);
    check_files(arguments.bundle, manifest, graph);
    check_inputs(manifest, graph);
    const Settings settings = read_settings(manifest, arguments.max_new_tokens);
    const Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "t5edge");
    Ort::Session encoder = open_graph(env, arguments, manifest, "encoder");
    Ort::Session decoder = open_graph(env, arguments, manifest, graph);
    const std::vector<Ids> sources = read_sources(std::cin, manifest);
    const auto began = std::chrono::steady_clock::now();
    size_t tokens = 0;
    for (size_t first = 0; first < sources.size(); first += arguments.batch) {
        const size_t last = std::min(sources.size(), first + static_cast<size_t>(arguments.batch));
        const std::vector<Ids> some(sources.begin() + first, sources.begin() + last);
        Batch batch(encoder, decoder, manifest, graph, some);
        for (const Ids& answer : generate(batch, some.size(), settings)) {
            for (size_t index = 0; index < answer.size(); ++index) std::cout << (index ? " " : "") << answer[index];
            std::cout << '\n';
            tokens += answer.size();
        }
        std::cout.flush();
    }
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - began;
    if (arguments.stats)
        std::cerr << json{{"sentences", sources.size()}, {"tokens", tokens}, {"seconds", seconds.count()}} << '\n';
}

int main(int count, char** words) try {
    run(parse(count, words));
    return 0;
} catch (const std::exception& error) {
    std::cerr << "generate: " << error.what() << '\n';
    return 2;
}
