"""The numerics: token layout, log-probs, decoding, checkpoints.

One primitive serves every method: the log-prob of chosen tokens under a causal language model, exact and fast on CPU
and GPU. The engine knows torch and transformers and knows nothing of alignment. Import its modules directly
(`from fairlead.engine.logprobs import reply_logprobs`); this package itself imports nothing, so that
`fairlead.engine.counter` is at hand where torch is not installed.

    layout       Tree, pack, lay_out      a batch is a forest: prompts are roots, replies are branches that share them
    forward      hidden_states, path_of   a packed forest through any causal LM, by the quickest path that proved exact
    attention    forest_attention         every token sees its prompt and its own branch (cascade, varlen: the kernels)
    tight        hidden_states            fewer passes over memory for Llama-shaped models
    dense        matmul, linear           products by the faster of the two libraries that torch brings
    logprobs     reply_logprobs, score    log-probs of reply tokens; only those positions ever reach the LM head
    heads        head_values, score_values            a scalar read off the hidden states: rewards, values, step labels
    adapters     with_adapter, merged, quantised      LoRA on shared weights, folded in float32 into a plain model
    decode       generate                 one prefill per prompt, a full batch, replies that ignore what else is in it
    checkpoint   save_model, ...          files and folders that are written whole or not at all
"""
