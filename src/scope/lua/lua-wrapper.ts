/**
 * The Lua around a client's script, so that inside a scope the script sees and names logical keys only:
 *
 *   [shebang line]
 *   <header> <the client's script, byte for byte>
 *
 * The header stands on the first line of the script, so that line numbers stay. It takes the prefix from the last ARGV
 * (and shared keys from those before it), makes KEYS logical, and puts its own `redis` in front of the real one: a local
 * variable, which a script cannot see behind. All scopes use one and the same wrapped script.
 *
 * Why there is no way around it:
 *  - The script compiles alone before it is wrapped (script-registry.ts), so it cannot close the header's block.
 *  - The header's own names do not occur in the script's text, so it cannot speak of them.
 *  - All ways from Lua to the real globals (`_G`, `getfenv`, `load`, `loadstring`, the string metatable, …) that the script
 *    names are hidden by locals of the same name. A global that Holdfast does not know is hidden too (`unknownGlobals`).
 *  - `redis` has only the fields listed here; `call` and `pcall` refuse what lua-rules.ts does not list.
 *  - What the server's libraries keep or tell of everybody's scripts it does not find (lua-libraries.ts).
 *
 * A script that only passes its keys on needs none of this (`needsNoWrapper`) and runs as it is, behind the second fence as
 * all do.
 *
 * Cost matters: the header runs with every call of the script. What runs each time is the first few statements; the rest
 * is one function, and code in it that most scripts never enter. Commands that the script names in quotes and that have
 * their one key first are prefixed at once. Where the text shows that the script calls no others (lua-calls.ts), the header
 * has no rules for them and is a tenth as long, which EVAL is spared with each call.
 */
import { calledCommands, onlyPassesKeysOn } from './lua-calls.ts';
import {
  LIBRARY_NAMES,
  ownLibrariesOfFunctions,
  ownLibrariesOfScript,
  usesHarmlessLibraries,
} from './lua-libraries.ts';
import { KEYED_COMMANDS, LUA_OTHERS, LUA_SIMPLE, PLAIN_COMMANDS, SIMPLE_COMMANDS } from './lua-rules.ts';

/** How the prefix travels: with shared keys before it, or alone. */
export interface WrapperShape {
  readonly shared: boolean;
  /** The script in a function of its own: for those that leave no room for the header's local variables. */
  readonly nested: boolean;
  /** Globals of the server's Lua that Holdfast has no opinion on. */
  readonly unknownGlobals: readonly string[];
}

/** Around a nested script. */
export const NESTED_START = 'return (function(...) ';
export const NESTED_END = '\nend)(...)';

/** What a Lua of the reference servers offers, hidden or not. */
export const KNOWN_GLOBALS: ReadonlySet<string> = new Set(
  (
    'ARGV KEYS _G _VERSION __redis__err__handler assert bit cjson cmsgpack collectgarbage coroutine error gcinfo ' +
    'getfenv getmetatable ipairs load loadstring math newproxy next os pairs pcall print rawequal rawget rawset redis ' +
    'select server setfenv setmetatable string struct table tonumber tostring type unpack xpcall'
  ).split(' '),
);

const HIDDEN_GLOBALS =
  'getfenv setfenv load loadstring dofile loadfile require module package debug io print newproxy __redis__err__handler'.split(
    ' ',
  );

/** Fields of `redis` that name no key. */
const API_FIELDS =
  'error_reply status_reply sha1hex log setresp set_repl replicate_commands breakpoint debug LOG_DEBUG LOG_VERBOSE LOG_NOTICE LOG_WARNING REPL_ALL REPL_AOF REPL_REPLICA REPL_SLAVE REPL_NONE REDIS_VERSION REDIS_VERSION_NUM SERVER_NAME VALKEY_VERSION VALKEY_VERSION_NUM'.split(
    ' ',
  );

/** Writes to the log of the KV store, which is the operator's: in a scope it writes nothing. */
const LOG = 'log';
const WRITES_NOTHING = 'function() end';

/** What a library may use of `redis` while it loads. */
const LOG_LEVELS = ['LOG_DEBUG', 'LOG_VERBOSE', 'LOG_NOTICE', 'LOG_WARNING'];
const VERSIONS = ['REDIS_VERSION', 'REDIS_VERSION_NUM'];

const SAFE_GLOBALS =
  'assert bit cjson cmsgpack collectgarbage coroutine error gcinfo ipairs math next pairs pcall rawequal rawget rawset select setmetatable string struct table tonumber tostring type unpack xpcall _VERSION KEYS ARGV redis server getmetatable os'.split(
    ' ',
  );

/** More names than this are looked up in a table instead of being compared one by one. */
const COMPARED_NAMES_MAX = 12;
export const REFUSED_IN_SCRIPTS = 'is not available to scripts in a scope';

/**
 * What `$c` raises: what a call gave as an error, with the line that the script called from. The server writes source and
 * line of whoever raises into the error; here they are kept from being written. Line 0 stands for a call in tail position
 * (`return redis.call(…)`), which leaves no line behind.
 */
const RAISE = `
 if $t(r)=='table' and r.err then
  local _,w=pcall(error,'',3)
  error(setmetatable({err=r.err},{
   __index={source='@CHUNK',line=tonumber(string.match(w,':(%d+):')) or 0,ignore_error_stats_update=r.ignore_error_stats_update},
   __newindex=function() end}))
 end`;

/** What else there is to do in a script that is known to call simple commands only: calls whose key is no string. */
function simpleOnly(names: readonly string[], shared: boolean): string {
  return `
 elseif not ${isNamed(names)} then r={err="NOPERM '"..tostring(c).."' ${REFUSED_IN_SCRIPTS}"}
 elseif k==nil and select('#',...)==0 then r=$p(c)
 else
  if $t(k)=='number' then k=string.format('%.17g',k) k=${physical('k', shared)} end
  r=$p(c,k,...)
 end`;
}

/**
 * Carries out what is not one simple command: finds the keys as find-names.ts does, calls, makes the reply logical.
 * `$P` is the prefix, `$p` the real `redis.pcall`, `$t` is `type`, `$S` the set of shared keys. A function that exists only
 * while it runs, for each one that the header defines costs something in every run.
 */
const GENERAL = `
 else r=(function(c,k,...)
 local a,n={c,k,...},2+select('#',...)
 if n==2 and k==nil then n=1 end
 if n==1 and c==nil then return $p() end
 if $t(c)~='string' then return $p(unpack(a,1,n)) end
 local P,S,sub,find,match,lower=$P,$S,string.sub,string.find,string.match,string.lower
 local function txt(v) if $t(v)=='number' then return string.format('%.17g',v) end return v end
 local function key(i) local v=txt(a[i]) if $t(v)=='string' and not S[v] then v=P..v end a[i]=v end
 local function rest(i) for j=i,n do key(j) end end
 local function word(i) local v=a[i] if $t(v)=='string' then return lower(v) end return '' end
 local function bare(v) if sub(v,1,#P)==P then return sub(v,#P+1) end return v end
 local function own(l)
  local o={}
  for i=1,#l do if sub(l[i],1,#P)==P then o[#o+1]=sub(l[i],#P+1) end end
  return o
 end
 local function glob(v) return string.gsub(P,'[%*%?%[%]\\\\]','\\\\%0')..v end
 local function clean(e)
  local i,j=find(e,"No such key '"..P,1,true)
  if i==9 then return sub(e,1,j-#P)..sub(e,j+1) end
  local at,last=1
  repeat
   i,j=find(e," for key name '"..P,at,true)
   if i then last=j at=i+1 end
  until not i
  if last and sub(e,1,8)=='NOGROUP ' then return sub(e,1,last-#P)..sub(e,last+1) end
  return e
 end
 local function go()
  local r=$p(unpack(a,1,n))
  if $t(r)=='table' and r.err then r.err=clean(r.err) return r,true end
  return r
 end
 local name,rule=lower(c)
 local plain='^[%l%d_%-]+$'
 if find(name,plain) then
  if find('${LUA_SIMPLE}',' '..name..' ',1,true) then rule='k1:1:1'
  else
   local rules='${LUA_OTHERS}'
   local escaped=string.gsub(name,'%-','%%-')
   local second=word(2)
   if find(second,plain) then rule=match(rules,' '..escaped..'|'..string.gsub(second,'%-','%%-')..'=(%S+)') end
   rule=rule or match(rules,' '..escaped..'=(%S+)')
  end
 end
 if not rule then return {err="NOPERM '"..name.."' ${REFUSED_IN_SCRIPTS}"} end
 if rule=='p' then return (go()) end
 local places,mark=match(rule,'^k([%d#][^/]*)/?(%l*)$')
 if places then
  for one in string.gmatch(places,'[^,]+') do
   local f,l,s=match(one,'^(%d+):(%-?%d+):(%d+)$')
   if f then
    local e=tonumber(l)
    if e<0 then e=n+e+1 else e=math.min(e+1,n) end
    for i=f+1,e,tonumber(s) do key(i) end
   else
    local q,first=match(one,'^#(%d+):(%d+)$')
    first=first+1
    local v=txt(a[q+1])
    local m=$t(v)=='string' and find(v,'^%d+$') and tonumber(v)
    if m and m<=n-first+1 then for i=first,first+m-1 do key(i) end else rest(first) end
   end
  end
  local r,bad=go()
  if not bad and mark=='first' and $t(r)=='table' and r[1] then r[1]=bare(r[1]) end
  return r
 end
 if rule=='sort' then
  if n>1 then key(2) end
  local i=3
  while i<=n do
   local left,w=n-i,word(i)
   if w=='limit' and left>=2 then i=i+2
   elseif w=='store' and left>=1 then i=i+1 key(i)
   elseif (w=='by' or w=='get') and left>=1 then
    i=i+1
    local v=a[i]
    if $t(v)=='string' and find(v,'*',1,true) then
     if find(P,'*',1,true) then return {err='NOPERM SORT cannot look up patterns in a scope whose name has a * in it'} end
     a[i]=P..v
    end
   elseif w~='asc' and w~='desc' and w~='alpha' then rest(i) break end
   i=i+1
  end
  return (go())
 end
 if rule=='georadius' or rule=='georadiusbymember' then
  if n>1 then key(2) end
  local i=rule=='georadius' and 7 or 6
  while i<=n do
   local w=word(i)
   if w=='count' and i<n then i=i+1
   elseif (w=='store' or w=='storedist') and i<n then i=i+1 key(i)
   elseif w~='withdist' and w~='withhash' and w~='withcoord' and w~='any' and w~='asc' and w~='desc' then rest(i) break end
   i=i+1
  end
  return (go())
 end
 if rule=='xread' then
  local i=2
  while i<=n do
   local left,w=n-i,word(i)
   if (w=='block' or w=='count') and left>=1 then i=i+1
   elseif w=='group' and left>=2 then i=i+2
   elseif w=='streams' and left>=1 then
    if left%2==0 then for j=i+1,i+left/2 do key(j) end else rest(i+1) end
    break
   elseif w~='noack' then rest(i) break end
   i=i+1
  end
  local r,bad=go()
  if bad or $t(r)~='table' then return r end
  if r.map then
   local o={}
   for s,v in pairs(r.map) do o[bare(s)]=v end
   r.map=o
  else for j=1,#r do r[j][1]=bare(r[j][1]) end end
  return r
 end
 if rule=='publish' then
  local v=txt(a[2])
  if $t(v)=='string' then a[2]=P..v end
  return (go())
 end
 if rule=='keys' then
  local v=txt(a[2])
  if $t(v)~='string' then return (go()) end
  a[2]=glob(v)
  local r,bad=go()
  if bad then return r end
  return own(r)
 end
 if rule=='scan' then
  local pattern,kind='*'
  for i=3,n-1,2 do
   local w,v=word(i),txt(a[i+1])
   if w=='match' and $t(v)=='string' then pattern=v elseif w=='type' and $t(v)=='string' then kind=lower(v) end
  end
  local r,bad=go()
  if bad then return r end
  r=$p('KEYS',glob(pattern))
  if r.err then return r end
  r=own(r)
  if not kind then return {'0',r} end
  local o={}
  for i=1,#r do if lower($p('TYPE',P..r[i]).ok)==kind then o[#o+1]=r[i] end end
  return {'0',o}
 end
 local all=$p('KEYS',glob('*'))
 if all.err then return all end
 if rule=='dbsize' then return #all end
 if rule=='randomkey' then
  if #all==0 then return false end
  return bare(all[$p('TIME')[2]%#all+1])
 end
 for i=1,#all,1000 do $p('UNLINK',unpack(all,i,math.min(i+999,#all))) end
 return {ok='OK'}
 end)(c,k,...) end`;

function oneLine(lua: string): string {
  return lua.replace(/\s*\n\s*/g, ' ').trim();
}

/** A start for the header's names that does not occur in the script. */
function unusedName(source: string): string {
  for (let number = 0; ; number += 1) {
    const name = number === 0 ? '_' : `_${number}_`;
    if (!source.includes(name)) return name;
  }
}

/** Simple commands that the script names in quotes, in its own spelling. */
function namedCommands(source: string): string[] {
  const named = new Set<string>();
  for (const [, name] of source.matchAll(/["']([A-Za-z]+)["']/g)) {
    if (SIMPLE_COMMANDS.has(name!.toLowerCase())) named.add(name!);
  }
  return [...named];
}

function isNamed(names: readonly string[]): string {
  if (names.length === 0) return 'false';
  if (names.length > COMPARED_NAMES_MAX) return '$f[c]';
  return `(${names.map((name) => `c=='${name}'`).join(' or ')})`;
}

function asksForMetatables(source: string): boolean {
  return source.includes('getmetatable') || source.includes('_G');
}

/** Ways to the real globals, hidden behind locals of the same name. `$m` is the real `getmetatable`. */
function hiding(source: string, { unknownGlobals }: WrapperShape): string[] {
  const named = [...HIDDEN_GLOBALS, ...unknownGlobals].filter((name) => source.includes(name));
  return [
    ...(asksForMetatables(source)
      ? ["local function getmetatable(t) if $t(t)=='table' then return $m(t) end return nil end"]
      : []),
    ...(named.length > 0 ? [`local ${named.join(',')}`] : []),
  ];
}

function physical(key: string, shared: boolean): string {
  return shared ? `$S[${key}] and ${key} or $P..${key}` : `$P..${key}`;
}

/**
 * Definitions of `$c` (call) and, where it is wanted, `$q` (pcall). `rest` is the end of the `if` that begins with simple
 * commands, and leaves its reply in `r`. Where there is `$q` it stands there alone, for it may be long.
 */
function callFunctions(names: readonly string[], shared: boolean, pcall: boolean, rest: string, raise: string): string {
  const start = `(c,k,...) local r if ${isNamed(names)} and $t(k)=='string' then r=$p(c,${physical('k', shared)},...)`;
  const table = names.length > COMPARED_NAMES_MAX ? `local $f={${names.map((name) => `['${name}']=1`).join(',')}}` : '';
  return oneLine(`${table}
    ${pcall ? `local function $q${start} ${rest} return r end` : ''}
    local function $c${start} ${pcall ? 'else r=$q(c,k,...) end' : rest} ${raise} return r end`);
}

/** Lua that takes the prefix from the end of `args` (and the shared keys: their number before it, and before that they). */
function takePrefix(args: string, shared: boolean): string {
  const prefix = `local a=${args} local n=#a $P=a[n] a[n]=nil`;
  if (!shared) return `do ${prefix} end`;
  return oneLine(`do ${prefix} end $S={}
    for i=1,tonumber(table.remove(${args})) do $S[table.remove(${args})]=true end`);
}

function bareKeys(keys: string, shared: boolean): string {
  if (shared) {
    return `do local a=${keys} for i=1,#a do local k=a[i] if not $S[k] then a[i]=string.sub(k,#$P+1) end end end`;
  }
  return `do local a,s,n=${keys},string.sub,#$P+1 for i=1,#a do a[i]=s(a[i],n) end end`;
}

/** The functions by which a script or library speaks to the server. */
function callers(source: string, chunk: string, { shared }: WrapperShape, pcall: boolean): string {
  const called = calledCommands(source, API_FIELDS);
  const raise = RAISE.replace('CHUNK', chunk);
  if (called !== undefined && [...called].every((name) => SIMPLE_COMMANDS.has(name.toLowerCase()))) {
    const names = [...called];
    return callFunctions(names, shared, pcall, simpleOnly(names, shared), raise);
  }
  const general = shared ? GENERAL : GENERAL.replace('$P,$S,string.sub', '$P,{},string.sub');
  return callFunctions(namedCommands(source), shared, pcall, general, raise);
}

function mentionedFields(source: string): string[] {
  return API_FIELDS.filter((field) => source.includes(field));
}

function assemble(header: readonly string[], body: string, nested: boolean): string {
  const name = unusedName(body);
  const named = header.join(' ').replace(/\$([a-zA-Z])/g, `${name}$1`);
  return nested ? `${named} ${NESTED_START}${body}${NESTED_END}` : `${named} ${body}`;
}

/**
 * Whether a script of EVAL does the same without a wrapper where all keys have the prefix: it neither sees their names nor
 * makes any. `body` is without a shebang line, and compiles.
 */
export function needsNoWrapper(body: string, unknownGlobals: readonly string[]): boolean {
  if (!usesHarmlessLibraries(body)) return false;
  return onlyPassesKeysOn(body, {
    keyed: KEYED_COMMANDS,
    plain: PLAIN_COMMANDS,
    harmless: API_FIELDS.filter((field) => field !== LOG),
    globals: new Set([...KNOWN_GLOBALS, ...unknownGlobals]),
    powerful: [...HIDDEN_GLOBALS, ...unknownGlobals, 'getmetatable', 'setmetatable'],
  });
}

/** A script of EVAL, wrapped. `body` is without a shebang line; bytes are latin1 text. */
export function wrapScript(body: string, shape: WrapperShape): string {
  const { shared, nested } = shape;
  const fields = mentionedFields(body).map((field) => `${field}=${field === LOG ? WRITES_NOTHING : `redis.${field}`}`);
  const pcall = body.includes('pcall');
  const api = ['call=$c', ...(pcall ? ['pcall=$q'] : []), ...fields];
  const header = [
    `local $t,$p,$P${shared ? ',$S' : ''}=type,redis.pcall`,
    takePrefix('ARGV', shared),
    ...(body.includes('KEYS') || body.includes('_G') ? [bareKeys('KEYS', shared)] : []),
    callers(body, 'user_script', shape, pcall),
    `local redis={${api.join(',')}}`,
    // Where the server has no such global, the script finds nil instead of an error.
    ...(body.includes('server') || body.includes('_G') ? ["local server=rawget(_G,'server') and redis"] : []),
    ...(asksForMetatables(body) ? ['local $m=getmetatable'] : []),
    ...hiding(body, shape),
    ...ownLibrariesOfScript(body).map(oneLine),
    ...(body.includes('_G') ? [`local _G={${SAFE_GLOBALS.map((name) => `${name}=${name}`).join(',')}}`] : []),
  ];
  return assemble(header, body, nested);
}

/** Ends the header of a wrapped library: what follows is the client's own code. */
export const LIBRARY_MARK = '--[==[holdfast]==]';

/**
 * A library of FUNCTION LOAD, wrapped: its functions are registered under `namePrefix` and their names. `body` is without
 * the shebang line. While a library loads, a server has no globals for it but `redis`, and that with few fields: what the
 * header needs of them it takes when a function is called.
 */
export function wrapLibrary(body: string, namePrefix: string, shape: WrapperShape): string {
  const { shared, nested } = shape;
  const later = mentionedFields(body)
    .filter((field) => field !== LOG)
    .map((field) => `$a.${field}=redis.${field}`);
  const libraries = ownLibrariesOfFunctions(body);
  const atLoad = [...LOG_LEVELS, ...VERSIONS.filter((field) => body.includes(field))];
  const header = [
    `local $a,$r,$t,$p,$m,$P${shared ? ',$S' : ''}={},redis`,
    callers(body, 'user_function', shape, true),
    ...libraries.declared.map(oneLine),
    oneLine(`
      local function $w(f)
       return function(keys,args)
        if not $t then
         $t,$p,$m=type,redis.pcall,getmetatable $a.call,$a.pcall,$a.register_function=$c,$q ${later.join(' ')}
        end
        ${takePrefix('args', shared)} ${bareKeys('keys', shared)} ${libraries.begun}
        return f(keys,args)
       end
      end
      local $e=('').dump local $h=$e
      local function $d($n,b,...)
       local more={...}
       if more[1]~=nil then return $r.register_function($n,b,...) end
       if $n==nil and b==nil then return $r.register_function() end
       if $n==nil or $n=='' then return $r.register_function($n,b) end
       if b~=nil then $e(b) return $r.register_function('${namePrefix}'..$n,$w(b)) end
       local $i,f=$n.function_name,$n.callback
       if $i==nil or $i=='' or f==nil then return $r.register_function($n) end
       $h(f)
       $n.function_name,$n.callback='${namePrefix}'..$i,$w(f)
       local r=$r.register_function($n)
       $n.function_name,$n.callback=$i,f
       return r
      end`),
    `local redis=$a redis.register_function,redis.log=$d,${WRITES_NOTHING}`,
    ...atLoad.map((field) => `redis.${field}=$r.${field}`),
    'local server,_G=redis',
    ...hiding(body, shape),
    LIBRARY_MARK,
  ];
  return assemble(header, body, nested);
}

/**
 * What a server says of an error that a library raises while it loads, which has neither `type` nor `error` for the header to look at
 * arguments and complain. `text` is latin1.
 */
export function registrationError(text: string): string {
  const [, start, what] = /^(ERR Error registering functions: ERR )(.*)$/s.exec(text) ?? [];
  if (start === undefined || what === undefined) return text;
  for (const [pattern, message] of REGISTRATION_ERRORS) {
    if (pattern.test(what)) return start + what.replace(pattern, message);
  }
  return text;
}

const REGISTRATION_ERRORS: readonly (readonly [pattern: RegExp, message: string])[] = [
  [
    new RegExp(`attempt to (?:index|call) (?:local|upvalue) '(${LIBRARY_NAMES.join('|')})' \\(a nil value\\)`),
    "Script attempted to access nonexistent global variable '$1'",
  ],
  [
    /^.*bad argument #1 to '_(?:\d+_)?e' \(function expected.*$/s,
    'second argument to redis.register_function must be a function',
  ],
  [
    /^.*bad argument #1 to '_(?:\d+_)?h' \(function expected.*$/s,
    'callback argument given to redis.register_function must be a function',
  ],
  [/^.*attempt to concatenate local '_(?:\d+_)?n' .*$/s, 'first argument to redis.register_function must be a string'],
  [
    /^.*attempt to concatenate local '_(?:\d+_)?i' .*$/s,
    'function_name argument given to redis.register_function must be a string',
  ],
  [
    /^.*attempt to index local '_(?:\d+_)?n' .*$/s,
    'calling redis.register_function with a single argument is only applicable to Lua table (representing named arguments).',
  ],
  [
    /attempt to call field '(p?call|setresp|set_repl|sha1hex|error_reply|status_reply|replicate_commands)' \(a nil value\)/,
    "Script attempted to access nonexistent global variable '$1'",
  ],
];
