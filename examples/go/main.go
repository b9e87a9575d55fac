// The official OpenAI SDK for Go through Tollgate: only base URL and key are different.
//
//	TOLLGATE_KEY=tg-… go run .
//
// `make run` prints the key.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/responses"
	"github.com/openai/openai-go/v3/shared"
)

const pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="

var (
	ctx      = context.Background()
	url      = setting("TOLLGATE_URL", "http://127.0.0.1:8080") + "/v1"
	model    = setting("TOLLGATE_MODEL", "demo")
	question = []openai.ChatCompletionMessageParamUnion{openai.UserMessage("What is a tollgate?")}
)

func setting(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

func connect(virtualKey string) openai.Client {
	return openai.NewClient(option.WithBaseURL(url), option.WithAPIKey(virtualKey))
}

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

func main() {
	client := connect(os.Getenv("TOLLGATE_KEY"))

	// A whole answer.
	answer := must(client.Chat.Completions.New(ctx, openai.ChatCompletionNewParams{Model: model, Messages: question}))
	fmt.Println("Answer:", answer.Choices[0].Message.Content)

	stream(client)
	callTool(client)
	fillForm(client)
	look(client)

	// The Responses API. What is not to be kept at the provider can be answered by any of them.
	response := must(client.Responses.New(ctx, responses.ResponseNewParams{
		Model: model,
		Input: responses.ResponseNewParamsInputUnion{OfString: openai.String("What is a tollgate?")},
		Store: openai.Bool(false),
	}))
	fmt.Println("Response:", response.OutputText())

	// A wrong key, an unknown model, a budget that is used up: ordinary errors of the SDK.
	refuse("Wrong key", connect("tg-wrong"), model)
	refuse("Unknown model", client, "a-model-nobody-registered")
	if spent := os.Getenv("TOLLGATE_SPENT_KEY"); spent != "" {
		refuse("Budget used up", connect(spent), model)
	}
}

// A stream, with its usage at the end.
func stream(client openai.Client) {
	chunks := client.Chat.Completions.NewStreaming(ctx, openai.ChatCompletionNewParams{
		Model:         model,
		Messages:      question,
		StreamOptions: openai.ChatCompletionStreamOptionsParam{IncludeUsage: openai.Bool(true)},
	})
	fmt.Print("Stream: ")
	for chunks.Next() {
		chunk := chunks.Current()
		for _, choice := range chunk.Choices {
			fmt.Print(choice.Delta.Content)
		}
		if usage := chunk.Usage; usage.TotalTokens > 0 {
			fmt.Println("\nUsage:", usage.PromptTokens, "in,", usage.CompletionTokens, "out")
		}
	}
	if err := chunks.Err(); err != nil {
		log.Fatal(err)
	}
}

// A tool: the model asks for it, we answer, it goes on. (What is in brackets is for the simulator of the demo.)
func callTool(client openai.Client) {
	params := openai.ChatCompletionNewParams{
		Model: model,
		Messages: []openai.ChatCompletionMessageParamUnion{
			openai.UserMessage(`How is the weather in Oslo? [[simulate tool=get_weather,args={"city":"Oslo"}]]`),
		},
		Tools: []openai.ChatCompletionToolUnionParam{
			openai.ChatCompletionFunctionTool(shared.FunctionDefinitionParam{
				Name:        "get_weather",
				Description: openai.String("The weather in a city."),
				Parameters: shared.FunctionParameters{
					"type":       "object",
					"properties": map[string]any{"city": map[string]any{"type": "string"}},
					"required":   []string{"city"},
				},
			}),
		},
	}
	asking := must(client.Chat.Completions.New(ctx, params)).Choices[0].Message
	params.Messages = append(params.Messages, asking.ToParam())
	for _, call := range asking.ToolCalls {
		fmt.Println("Tool:", call.Function.Name, call.Function.Arguments)
		params.Messages = append(params.Messages, openai.ToolMessage("4 degrees, rain", call.ID))
	}
	fmt.Println("Told:", must(client.Chat.Completions.New(ctx, params)).Choices[0].Message.Content)
}

// An answer of a given form.
func fillForm(client openai.Client) {
	formed := must(client.Chat.Completions.New(ctx, openai.ChatCompletionNewParams{
		Model:    model,
		Messages: question,
		ResponseFormat: openai.ChatCompletionNewParamsResponseFormatUnion{
			OfJSONSchema: &shared.ResponseFormatJSONSchemaParam{
				JSONSchema: shared.ResponseFormatJSONSchemaJSONSchemaParam{
					Name:   "toll",
					Strict: openai.Bool(true),
					Schema: map[string]any{
						"type": "object",
						"properties": map[string]any{
							"road":  map[string]any{"type": "string"},
							"euros": map[string]any{"type": "number"},
						},
						"required":             []string{"road", "euros"},
						"additionalProperties": false,
					},
				},
			},
		},
	}))
	var toll struct {
		Road  string
		Euros float64
	}
	if err := json.Unmarshal([]byte(formed.Choices[0].Message.Content), &toll); err != nil {
		log.Fatal(err)
	}
	fmt.Println("Schema:", toll.Road, toll.Euros)
}

// An image to look at.
func look(client openai.Client) {
	image := openai.ChatCompletionContentPartImageImageURLParam{URL: "data:image/png;base64," + pixel}
	seen := must(client.Chat.Completions.New(ctx, openai.ChatCompletionNewParams{
		Model: model,
		Messages: []openai.ChatCompletionMessageParamUnion{
			openai.UserMessage([]openai.ChatCompletionContentPartUnionParam{
				openai.TextContentPart("What is to be seen?"),
				openai.ImageContentPart(image),
			}),
		},
	}))
	fmt.Println("Image:", seen.Choices[0].Message.Content)
}

func refuse(why string, client openai.Client, model string) {
	_, err := client.Chat.Completions.New(ctx, openai.ChatCompletionNewParams{Model: model, Messages: question})
	var refusal *openai.Error
	if !errors.As(err, &refusal) {
		log.Fatal(err)
	}
	fmt.Printf("%s: %d %s %s\n", why, refusal.StatusCode, refusal.Code, refusal.Message)
}
