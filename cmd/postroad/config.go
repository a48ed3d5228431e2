package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"postroad/cmd/internal/config"
	"postroad/cmd/internal/ops"
)

// defaultFile is read when it exists and no other file is named.
const defaultFile = "/etc/postroad/postroad.yaml"

// load reads the configuration and says where it came from; "" is no file at all.
func (a *app) load() (c *config.Config, file string, err error) {
	file = a.flags.File
	if file == "" {
		if _, err := os.Stat(defaultFile); !errors.Is(err, fs.ErrNotExist) {
			file = defaultFile
		}
	}
	if c, err = config.Load(file); err != nil {
		if _, ok := errors.AsType[config.Errors](err); !ok {
			err = usage("%w", err)
		}
		return nil, file, err
	}
	return c, file, nil
}

// client speaks to the running server.
func (a *app) client() (*ops.Client, error) {
	if a.flags.Socket != "" {
		return ops.NewClient(a.flags.Socket), nil
	}
	c, _, err := a.load()
	if err != nil {
		return nil, err
	}
	return ops.NewClient(c.SocketPath()), nil
}

// print writes a value as one line of JSON.
func (a *app) print(value any) error {
	if err := json.NewEncoder(a.out).Encode(value); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

// say writes text for people.
func (a *app) say(format string, args ...any) {
	_, _ = fmt.Fprintf(a.out, format, args...)
}

type configCmd struct {
	Check  configCheckCmd  `cmd:"" help:"Report everything that is wrong with the configuration and the files it names."`
	Show   configShowCmd   `cmd:"" help:"Print what holds, defaults included."`
	Schema configSchemaCmd `cmd:"" help:"Print a JSON schema of the configuration, for editors."`
}

type configCheckCmd struct{}

// Run checks; the faults are printed by main, or as JSON here.
func (configCheckCmd) Run(a *app) error {
	c, file, err := a.load()
	if err == nil {
		err = c.CheckFiles()
	}
	if !a.flags.JSON {
		if err == nil {
			a.say("%s: good\n", nameOf(file))
		}
		return err
	}
	faults, _ := errors.AsType[config.Errors](err)
	if err != nil && faults == nil {
		return err
	}
	type fault struct {
		File    string `json:"file"`
		Line    int    `json:"line,omitempty"`
		Setting string `json:"setting,omitempty"`
		Text    string `json:"text"`
	}
	list := make([]fault, len(faults))
	for i, f := range faults {
		list[i] = fault(f)
	}
	if err := a.print(map[string]any{"file": file, "good": len(list) == 0, "faults": list}); err != nil {
		return err
	}
	if len(list) > 0 {
		return fmt.Errorf("%w: %w", errSaid, errUsage)
	}
	return nil
}

func nameOf(file string) string {
	if file == "" {
		return "no configuration file, all defaults"
	}
	return file
}

type configShowCmd struct{}

// Run prints the configuration.
func (configShowCmd) Run(a *app) error {
	c, _, err := a.load()
	if err != nil {
		return err
	}
	if a.flags.JSON {
		return a.print(c.Map())
	}
	text, err := c.Show()
	if err != nil {
		return err
	}
	a.say("%s", text)
	return nil
}

type configSchemaCmd struct{}

// Run prints the schema.
func (configSchemaCmd) Run(a *app) error {
	schema, err := config.Schema()
	if err != nil {
		return err
	}
	a.say("%s", schema)
	return nil
}
