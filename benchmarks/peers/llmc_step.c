// llm.c's CPU program as a library for llmc_gpt2.py: its train_gpt2.c, without main, and one whole training step on top.
// Built with -DTESTING -I LLM_C_FOLDER; that file is not part of this repository.
#include "train_gpt2.c"

static GPT2 model;

// From the parameters [count] at `values`, in llm.c's order. Dimensions as in GPT2Config.
void start(const float* values, int length, int vocabulary, int padded, int layers, int heads, int channels) {
    model.config = (GPT2Config){length, vocabulary, padded, layers, heads, channels};
    fill_in_parameter_sizes(model.param_sizes, model.config);
    model.num_parameters = 0;
    for (size_t i = 0; i < NUM_PARAMETER_TENSORS; i++) model.num_parameters += model.param_sizes[i];
    model.params_memory = malloc_and_point_parameters(&model.params, model.param_sizes);
    memcpy(model.params_memory, values, model.num_parameters * sizeof(float));
}

// Forward, backward, clip by global norm (0: none), AdamW; `number` counts from 1. The mean loss.
float step(int* tokens, int* targets, int batch, int length, float rate, float clip, float beta1, float beta2, float eps,
           float weight_decay, int number) {
    gpt2_forward(&model, tokens, targets, batch, length);
    gpt2_zero_grad(&model);
    gpt2_backward(&model);
    if (clip > 0) {
        double sum = 0;
        #pragma omp parallel for reduction(+ : sum)
        for (size_t i = 0; i < model.num_parameters; i++) sum += (double)model.grads_memory[i] * model.grads_memory[i];
        float scale = fmin(1.0, clip / (sqrt(sum) + 1e-6));
        #pragma omp parallel for
        for (size_t i = 0; i < model.num_parameters; i++) model.grads_memory[i] *= scale;
    }
    gpt2_update(&model, rate, beta1, beta2, eps, weight_decay, number);
    return model.mean_loss;
}
