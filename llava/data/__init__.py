"""From stored records to batches: schema, conversation, processor, mixture, dataset, sampler, collator."""
