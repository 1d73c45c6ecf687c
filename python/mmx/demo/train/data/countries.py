"""Countries with capital and continent, in English and Chinese."""

from __future__ import annotations

from typing import NamedTuple

CONTINENTS = {
    "E": "Europe",
    "A": "Asia",
    "F": "Africa",
    "N": "North America",
    "S": "South America",
    "O": "Oceania",
}


class Country(NamedTuple):
    name: str
    capital: str
    continent: str
    zh_name: str
    zh_capital: str


_TABLE = """
Afghanistan:Kabul:A:阿富汗:喀布尔 Albania:Tirana:E:阿尔巴尼亚:地拉那 Algeria:Algiers:F:阿尔及利亚:阿尔及尔
Andorra:Andorra_la_Vella:E:安道尔:安道尔城 Angola:Luanda:F:安哥拉:罗安达 Argentina:Buenos_Aires:S:阿根廷:布宜诺斯艾利斯
Armenia:Yerevan:A:亚美尼亚:埃里温 Australia:Canberra:O:澳大利亚:堪培拉 Austria:Vienna:E:奥地利:维也纳
Azerbaijan:Baku:A:阿塞拜疆:巴库 the_Bahamas:Nassau:N:巴哈马:拿骚 Bahrain:Manama:A:巴林:麦纳麦
Bangladesh:Dhaka:A:孟加拉国:达卡 Barbados:Bridgetown:N:巴巴多斯:布里奇敦 Belarus:Minsk:E:白俄罗斯:明斯克
Belgium:Brussels:E:比利时:布鲁塞尔 Belize:Belmopan:N:伯利兹:贝尔莫潘 Benin:Porto-Novo:F:贝宁:波多诺伏
Bhutan:Thimphu:A:不丹:廷布 Bolivia:Sucre:S:玻利维亚:苏克雷 Bosnia_and_Herzegovina:Sarajevo:E:波黑:萨拉热窝
Botswana:Gaborone:F:博茨瓦纳:哈博罗内 Brazil:Brasilia:S:巴西:巴西利亚 Brunei:Bandar_Seri_Begawan:A:文莱:斯里巴加湾
Bulgaria:Sofia:E:保加利亚:索非亚 Burkina_Faso:Ouagadougou:F:布基纳法索:瓦加杜古 Burundi:Gitega:F:布隆迪:基特加
Cambodia:Phnom_Penh:A:柬埔寨:金边 Cameroon:Yaounde:F:喀麦隆:雅温得 Canada:Ottawa:N:加拿大:渥太华
Cape_Verde:Praia:F:佛得角:普拉亚 the_Central_African_Republic:Bangui:F:中非共和国:班吉 Chad:N'Djamena:F:乍得:恩贾梅纳
Chile:Santiago:S:智利:圣地亚哥 China:Beijing:A:中国:北京 Colombia:Bogota:S:哥伦比亚:波哥大
Comoros:Moroni:F:科摩罗:莫罗尼 Costa_Rica:San_Jose:N:哥斯达黎加:圣何塞 Croatia:Zagreb:E:克罗地亚:萨格勒布
Cuba:Havana:N:古巴:哈瓦那 Cyprus:Nicosia:E:塞浦路斯:尼科西亚 the_Czech_Republic:Prague:E:捷克:布拉格
Denmark:Copenhagen:E:丹麦:哥本哈根 Djibouti:Djibouti_City:F:吉布提:吉布提市 Dominica:Roseau:N:多米尼克:罗索
the_Dominican_Republic:Santo_Domingo:N:多米尼加:圣多明各 Ecuador:Quito:S:厄瓜多尔:基多 Egypt:Cairo:F:埃及:开罗
El_Salvador:San_Salvador:N:萨尔瓦多:圣萨尔瓦多 Equatorial_Guinea:Malabo:F:赤道几内亚:马拉博 Eritrea:Asmara:F:厄立特里亚:阿斯马拉
Estonia:Tallinn:E:爱沙尼亚:塔林 Eswatini:Mbabane:F:斯威士兰:姆巴巴内 Ethiopia:Addis_Ababa:F:埃塞俄比亚:亚的斯亚贝巴
Fiji:Suva:O:斐济:苏瓦 Finland:Helsinki:E:芬兰:赫尔辛基 France:Paris:E:法国:巴黎 Gabon:Libreville:F:加蓬:利伯维尔
the_Gambia:Banjul:F:冈比亚:班珠尔 Georgia:Tbilisi:A:格鲁吉亚:第比利斯 Germany:Berlin:E:德国:柏林
Ghana:Accra:F:加纳:阿克拉 Greece:Athens:E:希腊:雅典 Grenada:Saint_George's:N:格林纳达:圣乔治
Guatemala:Guatemala_City:N:危地马拉:危地马拉城 Guinea:Conakry:F:几内亚:科纳克里 Guinea-Bissau:Bissau:F:几内亚比绍:比绍
Guyana:Georgetown:S:圭亚那:乔治敦 Haiti:Port-au-Prince:N:海地:太子港 Honduras:Tegucigalpa:N:洪都拉斯:特古西加尔巴
Hungary:Budapest:E:匈牙利:布达佩斯 Iceland:Reykjavik:E:冰岛:雷克雅未克 India:New_Delhi:A:印度:新德里
Indonesia:Jakarta:A:印度尼西亚:雅加达 Iran:Tehran:A:伊朗:德黑兰 Iraq:Baghdad:A:伊拉克:巴格达
Ireland:Dublin:E:爱尔兰:都柏林 Israel:Jerusalem:A:以色列:耶路撒冷 Italy:Rome:E:意大利:罗马
Ivory_Coast:Yamoussoukro:F:科特迪瓦:亚穆苏克罗 Jamaica:Kingston:N:牙买加:金斯敦 Japan:Tokyo:A:日本:东京
Jordan:Amman:A:约旦:安曼 Kazakhstan:Astana:A:哈萨克斯坦:阿斯塔纳 Kenya:Nairobi:F:肯尼亚:内罗毕
Kiribati:Tarawa:O:基里巴斯:塔拉瓦 Kosovo:Pristina:E:科索沃:普里什蒂纳 Kuwait:Kuwait_City:A:科威特:科威特城
Kyrgyzstan:Bishkek:A:吉尔吉斯斯坦:比什凯克 Laos:Vientiane:A:老挝:万象 Latvia:Riga:E:拉脱维亚:里加
Lebanon:Beirut:A:黎巴嫩:贝鲁特 Lesotho:Maseru:F:莱索托:马塞卢 Liberia:Monrovia:F:利比里亚:蒙罗维亚
Libya:Tripoli:F:利比亚:的黎波里 Liechtenstein:Vaduz:E:列支敦士登:瓦杜兹 Lithuania:Vilnius:E:立陶宛:维尔纽斯
Luxembourg:Luxembourg_City:E:卢森堡:卢森堡市 Madagascar:Antananarivo:F:马达加斯加:塔那那利佛 Malawi:Lilongwe:F:马拉维:利隆圭
Malaysia:Kuala_Lumpur:A:马来西亚:吉隆坡 the_Maldives:Male:A:马尔代夫:马累 Mali:Bamako:F:马里:巴马科
Malta:Valletta:E:马耳他:瓦莱塔 the_Marshall_Islands:Majuro:O:马绍尔群岛:马朱罗 Mauritania:Nouakchott:F:毛里塔尼亚:努瓦克肖特
Mauritius:Port_Louis:F:毛里求斯:路易港 Mexico:Mexico_City:N:墨西哥:墨西哥城 Micronesia:Palikir:O:密克罗尼西亚:帕利基尔
Moldova:Chisinau:E:摩尔多瓦:基希讷乌 Monaco:Monaco:E:摩纳哥:摩纳哥 Mongolia:Ulaanbaatar:A:蒙古:乌兰巴托
Montenegro:Podgorica:E:黑山:波德戈里察 Morocco:Rabat:F:摩洛哥:拉巴特 Mozambique:Maputo:F:莫桑比克:马普托
Myanmar:Naypyidaw:A:缅甸:内比都 Namibia:Windhoek:F:纳米比亚:温得和克 Nauru:Yaren:O:瑙鲁:亚伦 Nepal:Kathmandu:A:尼泊尔:加德满都
the_Netherlands:Amsterdam:E:荷兰:阿姆斯特丹 New_Zealand:Wellington:O:新西兰:惠灵顿 Nicaragua:Managua:N:尼加拉瓜:马那瓜
Niger:Niamey:F:尼日尔:尼亚美 Nigeria:Abuja:F:尼日利亚:阿布贾 North_Korea:Pyongyang:A:朝鲜:平壤
North_Macedonia:Skopje:E:北马其顿:斯科普里 Norway:Oslo:E:挪威:奥斯陆 Oman:Muscat:A:阿曼:马斯喀特
Pakistan:Islamabad:A:巴基斯坦:伊斯兰堡 Palau:Ngerulmud:O:帕劳:恩吉鲁穆德 Panama:Panama_City:N:巴拿马:巴拿马城
Papua_New_Guinea:Port_Moresby:O:巴布亚新几内亚:莫尔兹比港 Paraguay:Asuncion:S:巴拉圭:亚松森 Peru:Lima:S:秘鲁:利马
the_Philippines:Manila:A:菲律宾:马尼拉 Poland:Warsaw:E:波兰:华沙 Portugal:Lisbon:E:葡萄牙:里斯本 Qatar:Doha:A:卡塔尔:多哈
Romania:Bucharest:E:罗马尼亚:布加勒斯特 Russia:Moscow:E:俄罗斯:莫斯科 Rwanda:Kigali:F:卢旺达:基加利
Saint_Lucia:Castries:N:圣卢西亚:卡斯特里 Samoa:Apia:O:萨摩亚:阿皮亚 San_Marino:San_Marino:E:圣马力诺:圣马力诺
Saudi_Arabia:Riyadh:A:沙特阿拉伯:利雅得 Senegal:Dakar:F:塞内加尔:达喀尔 Serbia:Belgrade:E:塞尔维亚:贝尔格莱德
the_Seychelles:Victoria:F:塞舌尔:维多利亚 Sierra_Leone:Freetown:F:塞拉利昂:弗里敦 Singapore:Singapore:A:新加坡:新加坡
Slovakia:Bratislava:E:斯洛伐克:布拉迪斯拉发 Slovenia:Ljubljana:E:斯洛文尼亚:卢布尔雅那 the_Solomon_Islands:Honiara:O:所罗门群岛:霍尼亚拉
Somalia:Mogadishu:F:索马里:摩加迪沙 South_Africa:Pretoria:F:南非:比勒陀利亚 South_Korea:Seoul:A:韩国:首尔
South_Sudan:Juba:F:南苏丹:朱巴 Spain:Madrid:E:西班牙:马德里 Sri_Lanka:Colombo:A:斯里兰卡:科伦坡 Sudan:Khartoum:F:苏丹:喀土穆
Suriname:Paramaribo:S:苏里南:帕拉马里博 Sweden:Stockholm:E:瑞典:斯德哥尔摩 Switzerland:Bern:E:瑞士:伯尔尼
Syria:Damascus:A:叙利亚:大马士革 Tajikistan:Dushanbe:A:塔吉克斯坦:杜尚别 Tanzania:Dodoma:F:坦桑尼亚:多多马
Thailand:Bangkok:A:泰国:曼谷 Togo:Lome:F:多哥:洛美 Tonga:Nuku'alofa:O:汤加:努库阿洛法
Trinidad_and_Tobago:Port_of_Spain:N:特立尼达和多巴哥:西班牙港 Tunisia:Tunis:F:突尼斯:突尼斯市 Turkey:Ankara:A:土耳其:安卡拉
Turkmenistan:Ashgabat:A:土库曼斯坦:阿什哈巴德 Tuvalu:Funafuti:O:图瓦卢:富纳富提 Uganda:Kampala:F:乌干达:坎帕拉
Ukraine:Kyiv:E:乌克兰:基辅 the_United_Arab_Emirates:Abu_Dhabi:A:阿联酋:阿布扎比 the_United_Kingdom:London:E:英国:伦敦
the_United_States:Washington,_D.C.:N:美国:华盛顿 Uruguay:Montevideo:S:乌拉圭:蒙得维的亚 Uzbekistan:Tashkent:A:乌兹别克斯坦:塔什干
Vanuatu:Port_Vila:O:瓦努阿图:维拉港 Venezuela:Caracas:S:委内瑞拉:加拉加斯 Vietnam:Hanoi:A:越南:河内
Yemen:Sanaa:A:也门:萨那 Zambia:Lusaka:F:赞比亚:卢萨卡 Zimbabwe:Harare:F:津巴布韦:哈拉雷
"""


def _parse(entry: str) -> Country:
    name, capital, continent, zh_name, zh_capital = entry.replace("_", " ").split(":")
    return Country(name, capital, CONTINENTS[continent], zh_name, zh_capital)


COUNTRIES = [_parse(entry) for entry in _TABLE.split()]

# Cities that are no capitals, for tool calls.
_CITY_TABLE = """Shanghai Shenzhen Guangzhou Chengdu Hangzhou Wuhan Nanjing Hong_Kong New_York Los_Angeles Chicago Houston
San_Francisco Seattle Boston Miami Toronto Vancouver Montreal Sydney Melbourne Auckland Mumbai Kolkata Chennai
Osaka Kyoto Busan Istanbul Dubai Milan Naples Venice Munich Hamburg Frankfurt Cologne Barcelona Seville Valencia
Lyon Marseille Nice Geneva Zurich Basel Rotterdam Antwerp Manchester Liverpool Edinburgh Glasgow Krakow Gdansk
Porto Bergen Gothenburg Rio_de_Janeiro Sao_Paulo Cusco Medellin Lagos Casablanca Alexandria Cape_Town Durban
Karachi Lahore Hanover Leipzig Dresden Stuttgart Turin Bologna Florence Palermo Granada Bilbao Dallas Denver
Phoenix Atlanta Detroit Portland Austin Orlando Calgary Quebec Perth Brisbane Adelaide Christchurch Cebu Da_Nang
"""
CITIES = [city.replace("_", " ") for city in _CITY_TABLE.split()]
ZH_CITIES = """上海 北京 深圳 广州 成都 杭州 武汉 南京 西安 重庆 天津 苏州 青岛 大连 厦门 长沙 郑州 济南 沈阳 哈尔滨
昆明 福州 合肥 南昌 贵阳 兰州 太原 海口 三亚 拉萨 桂林 宁波 无锡 珠海 香港 澳门 台北 纽约 洛杉矶 芝加哥 旧金山
悉尼 墨尔本 大阪 京都 孟买 迪拜 米兰 慕尼黑 巴塞罗那 日内瓦 苏黎世 多伦多 温哥华""".split()
